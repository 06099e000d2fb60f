import pytest

from weightwatch.vectors.recipes.questions import Question, alike, apart, distinguishable, repeated


def test_case_and_space_do_not_make_a_text_another() -> None:
    assert alike(" What  IS\nit? ") == alike("what is it?")
    assert repeated(["a", "b", " A"]) == " A"
    assert repeated(["a", "b"]) is None


def test_a_text_belongs_to_one_side() -> None:
    apart(["yes"], ["no"], "positive and negative")
    with pytest.raises(ValueError, match="'Yes' is both right and wrong; it can be only one of the two"):
        apart(["Yes"], ["no", "yes "], "right and wrong")


def test_no_text_contains_one_of_the_other_side() -> None:
    distinguishable(["not so", "no"], ["sofa"], "positive and negative")
    with pytest.raises(ValueError, match="'not so' contains 'So' of the other side"):
        distinguishable(["So"], ["not so"], "positive and negative")
    with pytest.raises(ValueError, match="'!' has no word to search an answer for"):
        distinguishable(["yes"], ["!"], "positive and negative")


def test_a_question_may_be_a_text() -> None:
    assert Question.model_validate("Is it?") == Question(text="Is it?")
    assert not Question(text="Is it?").written
    assert Question(text="Is it?", positive=["yes"], negative=["no"]).written
