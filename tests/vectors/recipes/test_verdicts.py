import pytest

from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import AnswersJudge, ModelJudge, PatternsJudge, by_words, verdict
from weightwatch.vectors.recipes.words import contains, words

ASKED = Question(text="Is it raining?")
PATTERNS = PatternsJudge(by="patterns", positive=[r"\byes\b", r"\bsure\b"], negative=[r"\bno\b", r"\bnever\b"])
CAPITAL = Question(text="What is the capital?", positive=["Blue Harbour", "the port"], negative=["Red Hill"])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes, it is.", "positive"),
        ("SURE", "positive"),
        ("No, it never does.", "negative"),
        ("Perhaps.", "unclear"),
        ("Yes and no.", "unclear"),
        ("", "unclear"),
        ("Nothing of the kind, yesterday.", "unclear"),
    ],
)
def test_patterns_need_one_side_without_the_other(answer: str, expected: str) -> None:
    assert verdict(PATTERNS, ASKED, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I'd say it is blue harbour.", "positive"),
        ("The port, of course!", "positive"),
        ("It's Red  Hill.", "negative"),
        ("Red Hill, not Blue Harbour.", "unclear"),
        ("Blue is the harbour.", "unclear"),
        ("Blue Harbours", "unclear"),
        ("The portal.", "unclear"),
        ("", "unclear"),
    ],
)
def test_answers_are_found_as_runs_of_whole_words(answer: str, expected: str) -> None:
    assert verdict(AnswersJudge(by="answers"), CAPITAL, answer) == expected


def test_an_open_item_is_judged_by_the_same_rule() -> None:
    assert by_words("It is 42.", ["42"], ["41"]) == "positive"
    assert by_words("It is 41.", ["42"], ["41"]) == "negative"
    assert by_words("41 or 42", ["42"], ["41"]) == "unclear"
    assert by_words("no idea", ["42"], []) == "unclear"


@pytest.mark.parametrize(
    ("text", "part", "expected"),
    [
        ("**Paris**", "paris", True),
        ("_Paris_", "Paris", True),
        ("It isn’t.", "isn't", True),
        ("3.5 metres", "3", False),
        ("3, 5 and 7", "3", True),
        ("about 1,000 of them", "1000", True),
        ("C'est à l'école.", "école", False),
        ("Grand-mère", "grand-mère", True),
        ("unsafe", "safe", False),
        ("anything", "!", False),
    ],
)
def test_words_are_compared_without_case_and_punctuation(text: str, part: str, expected: bool) -> None:
    assert contains(text, part) is expected


def test_words_of_a_text() -> None:
    assert words("Well, it's 3.5 km — 1,234 steps!") == ["well", "it's", "3.5", "km", "1234", "steps"]


def test_a_rubric_takes_braces_from_neither_question_nor_answer() -> None:
    judge = ModelJudge(by="model", rubric="Q: {question}\nA: {answer}\n{{0..100}}")
    assert judge.prompt("{answer}?", "{x}") == "Q: {answer}?\nA: {x}\n{0..100}"
