import time

import pytest

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import (
    AnswersJudge,
    ModelJudge,
    PatternsJudge,
    WrittenJudge,
    by_words,
    verdict,
)

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


def test_a_written_answer_shows_its_own_side_and_no_other_answer_shows_any() -> None:
    judge = WrittenJudge(by="written")
    assert verdict(judge, CAPITAL, "blue  harbour") == "positive"
    assert verdict(judge, CAPITAL, "Red Hill") == "negative"
    assert verdict(judge, CAPITAL, "It is Red Hill") == "unclear"


def test_a_written_answer_belongs_to_its_side_whatever_the_patterns_say() -> None:
    judge = PatternsJudge(by="patterns", positive=["fool"], negative=["friend"])
    question = Question(text="Why?", positive=["Ask a friend."], negative=["No reason."])
    assert verdict(judge, question, "ask a  Friend.") == "positive"
    assert verdict(judge, question, "No reason.") == "negative"
    assert verdict(judge, question, "My friend, no reason.") == "negative"
    assert verdict(judge, question, "None.") == "unclear"


def test_a_pattern_that_backtracks_without_end_is_stopped() -> None:
    judge = PatternsJudge(by="patterns", positive=[r"^(a|aa)+$"], negative=[r"\bno\b"])
    begun = time.process_time()
    with pytest.raises(
        WeightWatchError,
        match=r"pattern '\^\(a\|aa\)\+\$' takes more than 1 s of computing on an answer of 61",
    ):
        verdict(judge, ASKED, "a" * 60 + "!")
    assert time.process_time() - begun < 4


def test_an_open_item_is_judged_by_the_same_rule() -> None:
    assert by_words("It is 42.", ["42"], ["41"]) == "positive"
    assert by_words("It is 41.", ["42"], ["41"]) == "negative"
    assert by_words("41 or 42", ["42"], ["41"]) == "unclear"
    assert by_words("no idea", ["42"], []) == "unclear"


def test_a_rubric_takes_braces_from_neither_question_nor_answer() -> None:
    judge = ModelJudge(by="model", rubric="Q: {question}\nA: {answer}\n{{0..100}}")
    assert judge.prompt("{answer}?", "{x}") == "Q: {answer}?\nA: {x}\n{0..100}"


@pytest.mark.parametrize(
    ("score", "expected"), [(100, "positive"), (70, "positive"), (69.9, "unclear"), (30.1, "unclear"), (30, "negative")]
)
def test_the_recipe_sets_the_thresholds_of_a_score(score: float, expected: str) -> None:
    assert ModelJudge(by="model", rubric="{question} {answer}").verdict(score) == expected
    assert ModelJudge(by="model", rubric="{question} {answer}", keep_positive=100).verdict(99.9) == "unclear"
