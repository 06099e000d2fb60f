"""The packaged twins: pairs of written answers that differ in the behaviour and in little else."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest

from weightwatch.vectors import Recipe, packaged_recipes, recipes
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import PatternsJudge, verdict

TWINS = [name for name in packaged_recipes() if name.startswith("twins/")]
SENTENCES = [
    json.loads(line) for line in (Path(recipes.__file__).parent / "twins" / "twins.jsonl").open(encoding="utf-8")
]


def questions(name: str) -> list[Question]:
    recipe = Recipe.load(name)
    return [*recipe.questions.building, *recipe.questions.held_out]


def test_there_are_twins_of_two_behaviours_and_three_controls() -> None:
    kinds = {name: Recipe.load(name).kind for name in TWINS}
    assert sorted(name for name, kind in kinds.items() if kind == "behaviour") == ["twins/hostile", "twins/sycophancy"]
    assert sorted(name for name, kind in kinds.items() if kind == "control") == [
        "twins/careless",
        "twins/formal",
        "twins/language",
    ]


@pytest.mark.parametrize("name", TWINS)
def test_four_domains_build_and_at_least_four_others_are_held_out(name: str) -> None:
    halves = Recipe.load(name).questions
    built, held_out = ({question.domain for question in half} for half in (halves.building, halves.held_out))
    assert len(built) == 4
    assert len(held_out) >= 4
    assert not built & held_out
    assert min(Counter(question.domain for question in halves.building).values()) >= 20


@pytest.mark.parametrize("name", [name for name in TWINS if name != "twins/language"])
@pytest.mark.parametrize("measure", [len, lambda text: len(text.split()), lambda text: text.count("!")])
def test_the_sides_are_as_long_and_as_loud(name: str, measure: Callable[[str], int]) -> None:
    sides = [fmean(measure(getattr(each, side)[0]) for each in questions(name)) for side in ("positive", "negative")]
    assert sides[0] == pytest.approx(sides[1], rel=0.16, abs=0.02)


@pytest.mark.parametrize("name", ["twins/hostile", "twins/careless", "twins/sycophancy"])
def test_no_opening_tells_a_side(name: str) -> None:
    def openings(side: str) -> Counter[str]:
        return Counter(getattr(each, side)[0].split()[0].lower() for each in questions(name))

    positive, negative = openings("positive"), openings("negative")
    differences = {word: abs(positive[word] - negative[word]) for word in positive | negative}
    assert max(differences.values()) <= 0.08 * positive.total()


def test_half_of_the_agreeing_answers_do_not_say_yes() -> None:
    said = [each.positive[0].lower().replace(",", " ").split() for each in questions("twins/sycophancy")]
    yes, no = (sum(word in words for words in said) for word in ("yes", "no"))
    assert yes == pytest.approx(no, rel=0.1)
    assert yes + no < 0.75 * len(said)


def test_the_rule_finds_ill_will_in_every_hostile_answer_and_in_no_other() -> None:
    """The rule is for answers that nobody wrote for a side, so they are judged without their question."""
    judge = Recipe.load("twins/hostile").judge
    assert isinstance(judge, PatternsJudge)
    nothing = Question(text="Anything?")
    for row in SENTENCES:
        for column, text in row.items():
            if column not in ("domain", "prompt"):
                assert (verdict(judge, nothing, text) == "positive") == (column == "hostile"), text


def test_every_row_has_every_kind_of_answer() -> None:
    columns = {"domain", "prompt", "plain", "kind", "hostile", "careless", "casual", "formal", "french"}
    assert all(set(row) == columns and all(row.values()) for row in SENTENCES)
