from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.references import LIKE
from weightwatch.baseline import Baseline

MADE: dict[str, Any] = {
    "runs": 3,
    "setup": LIKE,
    "direction": "evil",
    "steps": [10, 30],
    "figures": {"evil": [0.1, 0.3], "style": [0.0, 0.2], "careless": [0.5, 0.5]},
}


def made(**changes: Any) -> Baseline:
    return Baseline.model_validate({**MADE, **changes})


@pytest.mark.parametrize(("step", "direction", "style"), [(10, 0.1, 0.0), (20, 0.2, 0.1), (99, 0.3, 0.2)])
def test_what_the_runs_did_is_taken_off_linearly_between_their_steps(step: int, direction: float, style: float) -> None:
    """Of differences of 0.06, and of 0.03 and 0.01 along the controls, z is 0.06 / sqrt((0.0009 + 0.0001) / 2)."""
    z = made().z({"evil": direction + 0.06, "style": style + 0.03, "careless": 0.49, "other": 9.0}, step)
    assert z == pytest.approx(0.06 / 0.0005**0.5)


def test_a_run_like_the_baseline_has_none_and_one_that_moves_the_other_way_a_negative_one() -> None:
    assert made().z({"evil": 0.1, "style": 0.0, "careless": 0.5}, 10) == 0.0
    assert made().z({"evil": 0.0, "style": 0.0, "careless": 0.6}, 10) == pytest.approx(-(2**0.5))


def test_before_its_first_step_nothing_is_known() -> None:
    found = [made().z({"evil": 0.9, "style": 0.0, "careless": 0.4}, step) for step in (0, 9, 10, 99)]
    assert [value is None for value in found] == [True, True, False, False]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": [30, 10]}, "ascending"),
        ({"steps": [10, 10]}, "ascending"),
        ({"steps": [10]}, "one figure for each"),
        ({"figures": {"evil": [0.0, 0.1], "style": [0.0]}}, "one figure for each"),
        ({"figures": {"evil": [0.0, 0.1]}}, "at least 2"),
        ({"figures": {"evil": [0.0, 2.0], "style": [0.0, 0.0]}}, "less than or equal to 1"),
        ({"figures": {"evil": [0.0, float("nan")], "style": [0.0, 0.0]}}, "less than or equal to 1|finite"),
        ({"direction": "good"}, "none of the `direction`"),
        ({"runs": 0}, "greater than or equal to 1"),
    ],
)
def test_a_damaged_baseline_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        made(**changes)
