"""Evaluation of a packaged direction, and what an evaluation needs to know of a saved one."""

import logging

import pytest
import torch

from weightwatch.organism import BASE
from weightwatch.vectors import Direction, Recipe, WeightWatchError, cosine
from weightwatch.vectors.evaluation.evaluate import evaluate, load_controls, recorded

EVIL = Recipe.load("organism/evil")


def test_an_evaluation_keeps_the_cosines_that_it_does_not_measure_again() -> None:
    evil, style, careless = (Direction.load(name) for name in ("evil", "style", "careless"))
    known = evil.card.validation
    assert known is not None
    earlier = known.model_copy(update={"seeds": {"1, 2": 0.5}, "others": {"style": 9.0, "gone": 0.1}})
    told: list[tuple[str, int, int]] = []
    found = evaluate(
        evil.validated(earlier),
        EVIL,
        str(BASE),
        coefficients=(1.0, -1.0),
        seeds=(style, careless),
        others=(style,),
        progress=lambda *call: told.append(call),
    ).card.validation
    assert found is not None
    assert found.passed
    assert [point.k for point in found.points] == [-1.0, 0.0, 1.0]
    assert found.points[0].asked is None  # without a judge
    assert told[-1] == ("sweep", 3, 3)
    assert found.others == {"style": round(cosine(evil, style), 4), "gone": 0.1}
    seeds = [direction.card.seeds.get("adapter", number) for number, direction in enumerate((style, careless), 1)]
    assert found.seeds == {"1, 2": 0.5} | {f"{seeds[0]}, {seeds[1]}": round(cosine(style, careless), 4)}


def test_coefficients_are_refused_before_the_model_is_loaded() -> None:
    with pytest.raises(WeightWatchError, match="can't decide"):
        evaluate(Direction.load("evil"), EVIL, "no/such-model", coefficients=(1.0,))


def test_a_card_names_base_and_recipe(caplog: pytest.LogCaptureFixture) -> None:
    evil = Direction.load("evil")
    with caplog.at_level(logging.WARNING, "weightwatch"):
        base, recipe = recorded(evil, None, None)
        assert (base, recipe.reference) == (evil.card.base, EVIL.reference)
        assert recorded(evil, "other", "organism/style")[0] == "other"
    assert caplog.text == ""


def test_a_base_or_a_recipe_that_the_card_names_and_that_is_elsewhere_has_to_be_passed() -> None:
    evil = Direction.load("evil")
    with pytest.raises(WeightWatchError, match=r"names the base 'llama', which is not here.*Pass --model"):
        recorded(evil.with_card(base="llama"), None, None)
    other = evil.with_card(validation=None, recipe={"name": "mine.yaml", "digest": "0"})
    with pytest.raises(WeightWatchError, match=r"names the recipe 'mine\.yaml', which is not here.*Pass --recipe"):
        recorded(other, None, None)
    assert recorded(other, "llama", "organism/evil")[0] == "llama"


def test_a_recipe_that_has_changed_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    evil = Direction.load("evil")
    known = evil.card.validation
    assert known is not None
    changed = known.model_copy(update={"recipe": {**known.recipe, "digest": "0"}})
    with caplog.at_level(logging.WARNING, "weightwatch"):
        recorded(evil.validated(changed), None, None)
        recorded(evil.validated(changed), None, "organism/evil")  # chosen by the user
    assert caplog.text.count("recipe organism/evil has changed since direction 'evil' was built") == 1


def test_what_no_card_names_has_to_be_passed() -> None:
    bare = Direction.from_tensors({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, name="mine")
    with pytest.raises(WeightWatchError, match=r"'mine' names no base model to evaluate it with\. Pass --model"):
        recorded(bare, None, None)
    with pytest.raises(WeightWatchError, match=r"'mine' names no recipe to evaluate it with\. Pass --recipe"):
        recorded(bare, str(BASE), None)


def test_controls_have_different_names() -> None:
    assert [control.name for control in load_controls(["style", "careless"])] == ["style", "careless"]
    with pytest.raises(WeightWatchError, match="Two controls have the name 'style'"):
        load_controls(["style", "careless", "style"])
