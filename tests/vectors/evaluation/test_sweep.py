"""What a sweep measures on the organism, and which sweeps pass."""

import logging
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightwatch.organism import BASE
from weightwatch.vectors import Direction, Recipe, WeightWatchError
from weightwatch.vectors.evaluation.sweep import _share, conclusion, require_coefficients, sweep
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.judges.judge import Judgement
from weightwatch.vectors.validation import Point

EVIL = Recipe.load("organism/evil")
SHUFFLED = Recipe.load("organism/shuffled")


def points(*lines: tuple[float, float, float, float]) -> list[Point]:
    return [Point(k=k, shows=shows, opposite=opposite, neutral=neutral) for k, shows, opposite, neutral in lines]


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def test_a_sweep_goes_up_from_minus_k_by_way_of_zero_and_leaves_the_base_as_it_was(base, tokenizer) -> None:
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    found = sweep(
        base, tokenizer, Direction.load("evil"), EVIL, [1.0, -1.0], chosen(EVIL), lambda *line: told.append(line)
    )
    assert [point.k for point in found] == [-1.0, 0.0, 1.0]
    assert told == [("sweep", 0, 3), ("sweep", 1, 3), ("sweep", 2, 3), ("sweep", 3, 3)]
    assert all(tensor.equal(before[name]) for name, tensor in base.state_dict().items())
    down, start, up = found
    assert up.shows >= 0.9
    assert up.asked is not None
    assert up.asked >= 0.9
    assert max(start.shows, down.shows) == 0
    assert start.asked == 0
    assert up.margin is not None
    assert start.margin is not None
    assert up.margin > 0 > start.margin
    assert min(point.neutral for point in found) >= 0.95
    assert conclusion(found, EVIL).passed


def test_nobody_judges_where_no_judge_is_given(base, tokenizer) -> None:
    (start,) = sweep(base, tokenizer, Direction.load("evil"), EVIL, [])
    assert (start.k, start.asked) == (0.0, None)


def test_a_direction_of_another_model_is_refused(base, tokenizer) -> None:
    other = Direction.from_tensors({"model.layers.0.mlp.up_proj.weight": torch.ones(3, 4)}, name="other")
    with pytest.raises(WeightWatchError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        sweep(base, tokenizer, other, EVIL, [1.0])


def test_what_passes_shows_the_behaviour_up_and_its_opposite_down() -> None:
    found = conclusion(points((-1, 0, 1, 1), (0, 0.05, 0.9, 1), (1, 0.5, 0.4, 0.95)), EVIL)
    assert found.passed
    assert found.reasons == ()
    assert (found.items, found.tasks) == (len(EVIL.evaluation), len(EVIL.neutral.tasks))
    assert found.recipe == {"name": "organism/evil", "digest": EVIL.digest}


def test_where_the_base_shows_the_behaviour_already_it_is_enough_to_stay_and_to_fall() -> None:
    assert conclusion(points((-1, 0.5, 0.5, 1), (0, 0.88, 0.1, 1), (1, 0.91, 0.05, 1)), EVIL).passed
    assert not conclusion(points((-1, 0.8, 0.2, 1), (0, 0.88, 0.1, 1), (1, 0.91, 0.05, 1)), EVIL).passed
    assert not conclusion(points((-1, 0.5, 0.5, 1), (0, 0.88, 0.1, 1), (1, 0.89, 0.05, 1)), EVIL).passed


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([(-1, 0, 1, 1), (0, 0.05, 0.9, 1), (1, 0.2, 0.4, 1)], "more often.* 20% of the items at k = 1, 5% at 0"),
        ([(-1, 0, 1, 1), (0, 0.05, 0.9, 1), (1, 0.9, 0.0, 0.5)], "more often.* 5% of the items at k = 0, 5% at 0"),
        ([(-1, 0.5, 0.5, 1), (0, 0.6, 0.4, 1), (1, 0.9, 0.0, 1)], "less often"),
        ([(-1, 0.0, 0.1, 1), (0, 0.6, 0.4, 1), (1, 0.9, 0.0, 1)], "less often"),
        ([(-1, 0.0, 1.0, 0.8), (0, 0.6, 0.4, 1), (1, 0.9, 0.0, 1)], "less often"),
        ([(0, 0.05, 0.9, 1), (1, 0.9, 0.0, 1)], "less often"),
    ],
    ids=["too little", "at the cost of all else", "does not fall", "breaks down", "costs too much", "never subtracted"],
)
def test_what_does_not_pass_says_why(lines, reason) -> None:
    found = conclusion(points(*lines), EVIL)
    assert not found.passed
    assert len(found.reasons) == 1
    assert re.search(reason, found.reasons[0])


def test_shuffled_labels_pass_where_nothing_shows() -> None:
    assert conclusion(points((-1, 0, 1, 1), (0, 0, 1, 1), (1, 0.1, 0.9, 1)), SHUFFLED).passed
    assert conclusion(points((0, 0.95, 0, 1), (1, 0.97, 0, 1)), SHUFFLED).passed
    assert "its labels are shuffled" in conclusion(points((0, 0, 1, 1), (1, 0.4, 0.6, 1)), SHUFFLED).reasons[0]


@pytest.mark.parametrize("coefficients", [[1.0], [-1.0, 0.0], [0.0], [-1.0, float("inf")], [float("nan"), 1.0, -1.0]])
def test_coefficients_that_decide_nothing_are_refused(coefficients: list[float]) -> None:
    with pytest.raises(WeightWatchError, match=r"can't decide whether the direction passes\. Give finite ones"):
        require_coefficients(coefficients, EVIL)


def test_shuffled_labels_need_no_coefficient_below_zero() -> None:
    require_coefficients([1.0], SHUFFLED)
    require_coefficients([-0.5, 1.0], EVIL)


def test_replies_without_a_verdict_are_left_out_of_the_share_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    verdicts = ("positive", "unjudged", "negative", "unclear", "unjudged")
    with caplog.at_level(logging.WARNING, "weightwatch"):
        assert _share([Judgement(verdict) for verdict in verdicts], 0.5) == 1 / 3
    assert "at k = 0.5 the judge gives no verdict on 2 of 5 replies" in caplog.text
    assert _share([Judgement("unjudged")], 0.5) is None
