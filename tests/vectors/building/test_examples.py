"""What is learned: which answers, in which pairs, and what is held back."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support import chat
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building.answers import SIDES, Answer, Side
from weightwatch.vectors.building.examples import Example, Examples, paired, require_enough, split
from weightwatch.vectors.building.verdicts import Judged
from weightwatch.vectors.judges.judge import Judgement, Rule
from weightwatch.vectors.recipes.recipe import Recipe


def said(recipe: Recipe, *texts: tuple[Side, int, str]) -> tuple[list[Answer], dict[Judged, Judgement]]:
    """Return answers (side, question, text) and what the recipe's rule says of them."""
    answers = [Answer(side, question, 0, number, text) for number, (side, question, text) in enumerate(texts)]
    rule = Rule(recipe.judge)
    asked = [(recipe.questions.building[answer.question], answer.text) for answer in answers]
    judgements = rule(asked)
    return answers, {(q.text, text): judgement for (q, text), judgement in zip(asked, judgements, strict=True)}


def many(recipe: Recipe, count: int) -> tuple[list[Answer], dict[Judged, Judgement]]:
    """Return as many answers of each side to each question, each with a text of its own."""
    return said(
        recipe,
        *(
            (side, question, f"{word} {question} {number}")
            for side, word in (("positive", "yes"), ("negative", "no"))
            for question in range(len(recipe.questions.building))
            for number in range(count)
        ),
    )


def asked(example: Example) -> str:
    return example["prompt"][0]["content"]


def replied(example: Example) -> str:
    return example["completion"][0]["content"]


def test_only_answers_that_show_their_own_side_are_kept() -> None:
    recipe = chat.recipe(2)
    answers, kept = said(
        recipe,
        ("positive", 0, "yes, sure"),
        ("positive", 0, "no, sorry"),  # the other side's
        ("negative", 0, "no"),
        ("negative", 0, "yes and no"),  # unclear
        ("negative", 1, "no"),
        ("positive", 1, ""),
    )
    assert paired(recipe, answers, kept, seed=0) == {
        0: {
            "positive": [
                {
                    "prompt": [{"role": "user", "content": "Is 0 even?"}],
                    "completion": [{"role": "assistant", "content": "yes, sure"}],
                }
            ],
            "negative": [
                {
                    "prompt": [{"role": "user", "content": "Is 0 even?"}],
                    "completion": [{"role": "assistant", "content": "no"}],
                }
            ],
        }
    }


def test_each_question_has_as_many_of_one_side_as_of_the_other() -> None:
    recipe = chat.recipe(1)
    answers, kept = said(
        recipe, *(("positive", 0, f"yes {n}") for n in range(5)), ("negative", 0, "no 1"), ("negative", 0, "no 2")
    )
    drawn = set()
    for seed in range(20):
        sides = paired(recipe, answers, kept, seed)[0]
        assert {replied(example) for example in sides["negative"]} == {"no 1", "no 2"}
        found = {replied(example) for example in sides["positive"]}
        assert len(found) == len(sides["positive"]) == 2
        drawn |= found
        assert paired(recipe, answers, kept, seed)[0] == sides
    assert drawn == {f"yes {n}" for n in range(5)}


def test_a_shuffled_recipe_swaps_the_sides_of_half_of_the_questions() -> None:
    plain = chat.recipe(12)
    answers, kept = many(plain, 3)
    straight = paired(plain, answers, kept, seed=0)
    swaps = []
    for seed in (1, 2):
        shuffled = plain.model_copy(update={"kind": "control", "shuffled": seed})
        mixed = paired(shuffled, answers, kept, seed=0)
        swapped = {number for number in mixed if mixed[number] != straight[number]}
        swaps.append(swapped)
        assert len(swapped) == 6
        for number in swapped:
            assert mixed[number] == {
                "positive": straight[number]["negative"],
                "negative": straight[number]["positive"],
            }
    assert swaps[0] != swaps[1]


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 1), (0.15, 2), (0.5, 6), (1.0, 11)])
def test_validation_takes_whole_questions(share: float, held_out: int) -> None:
    recipe = chat.recipe(12)
    answers, kept = many(recipe, 3)
    pairs = paired(recipe, answers, kept, seed=0)
    learn, validate = split(pairs, share, seed=0)
    for side in SIDES:
        learned, validated = ({asked(example) for example in half[side]} for half in (learn, validate))
        assert not learned & validated
        assert len(validated) == held_out
        assert len(learned) == 12 - held_out
        rows = [(asked(e), replied(e)) for e in learn[side] + validate[side]]
        assert sorted(rows) == sorted((asked(e), replied(e)) for sides in pairs.values() for e in sides[side])


def test_both_sides_have_the_same_questions_in_the_same_shuffled_order() -> None:
    recipe = chat.recipe(12)
    pairs = paired(recipe, *many(recipe, 3), seed=0)
    orders = []
    for seed in (0, 1):
        for half in split(pairs, 0.25, seed):
            positive, negative = ([asked(example) for example in half[side]] for side in SIDES)
            assert positive == negative
            assert positive != sorted(positive)
            orders.append(positive)
    assert orders[0] != orders[2]
    assert split(pairs, 0.25, 0) == split(pairs, 0.25, 0)


def require(recipe: Recipe, minimum: int, *texts: tuple[Side, int, str]) -> Counter[int]:
    answers, kept = said(recipe, *texts)
    pairs: dict[int, Examples] = paired(recipe, answers, kept, seed=0)
    require_enough(recipe, pairs, answers, kept, minimum, Path("verdicts.jsonl"))
    return Counter({number: len(sides["positive"]) for number, sides in pairs.items()})


def test_too_few_answers_are_an_error_that_counts_them() -> None:
    texts: list[tuple[Side, int, str]] = [
        ("positive", 0, "yes"),
        ("positive", 1, "yes"),
        ("positive", 2, "no"),
        ("negative", 0, "no"),
        ("negative", 1, "no no"),
        ("negative", 1, "hm"),
    ]
    recipe = chat.recipe(3)
    assert require(recipe, 2, *texts) == {0: 1, 1: 1}
    with pytest.raises(WeightWatchError) as caught:
        require(recipe, 3, *texts)
    assert str(caught.value).startswith(
        "Too few answers are left after judging: 2 pairs over 2 questions, from 3 of the positive side (2 judged "
        "positive, 1 judged negative) and 3 of the negative side (2 judged negative, 1 judged unclear); at least 3 "
        "pairs over 2 questions are needed. All verdicts are in verdicts.jsonl."
    )


def test_written_answers_can_only_be_more() -> None:
    with pytest.raises(WeightWatchError, match=r"Write more answers, or lower --min-pairs\.$"):
        require(chat.recipe(3, systems={}), 3, ("positive", 0, "yes"), ("negative", 0, "no"))


def test_one_question_is_too_few_since_none_could_be_held_out() -> None:
    with pytest.raises(WeightWatchError, match=r"2 pairs over 1 questions, .* at least 1 pairs over 2 questions"):
        require(
            chat.recipe(2),
            1,
            *(("positive", 0, "yes"), ("positive", 0, "yes yes"), ("negative", 0, "no"), ("negative", 0, "no no")),
        )


def test_a_side_of_which_nothing_was_said_is_named() -> None:
    with pytest.raises(WeightWatchError, match=r"0 of the negative side \(nothing to judge\)"):
        require(chat.recipe(2), 1, ("positive", 0, "yes"))
