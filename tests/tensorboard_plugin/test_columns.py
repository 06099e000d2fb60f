from typing import Any

import numpy as np
import pytest

from tests.support.runs import reading
from weightwatch.tensorboard_plugin.columns import METRICS, Columns


def columns(*lines: dict[str, Any]) -> Columns:
    made = Columns()
    for line in lines:
        made.put(line)
    return made


def line(step: int, value: float = 0.5, **changes: Any) -> dict[str, Any]:
    made = reading(step, value, layers=[value, -value], modules={"q_proj": 2 * value}).to_json()
    # as it is in a file, where layers are text
    made["directions"]["evil"]["layers"] = {str(k): v for k, v in made["directions"]["evil"]["layers"].items()}
    return {**made, **changes}


def of(
    made: Columns, kind: Any, metric: Any = "reach_cosine", name: str = "evil"
) -> tuple[list[str], list[list[float]]]:
    names, values = made.blocks[name].of(metric, kind, len(made.steps))
    return names, [[round(value, 4) for value in row] for row in values.tolist()]


def test_figures_are_in_the_order_of_steps_and_parts() -> None:
    made = columns(line(5, 0.1), line(10, 0.2, checkpoint="checkpoint-10"))
    assert made.steps == [5, 10]
    assert made.checkpoints == [None, "checkpoint-10"]
    assert of(made, "model") == ([""], [[0.1], [0.2]])
    assert of(made, "layers") == (["0", "1"], [[0.1, -0.1], [0.2, -0.2]])
    assert of(made, "modules", "dose") == (["q_proj"], [[0.2], [0.4]])


def test_a_fuller_line_of_the_same_step_replaces_the_last_one() -> None:
    made = columns(line(5, 0.1), line(5, 0.1, checkpoint="checkpoint-5"), line(10))
    assert (made.steps, made.checkpoints) == ([5, 10], ["checkpoint-5", None])


def test_there_is_room_for_any_number_of_checks() -> None:
    made = columns(*(line(step, step / 1000) for step in range(100)))
    assert of(made, "model")[1] == [[round(step / 1000, 4)] for step in range(100)]


def test_a_part_or_a_direction_that_comes_later_was_not_recorded_before() -> None:
    later, other = line(10), line(15)
    later["directions"]["evil"]["layers"]["7"] = later["directions"]["evil"]["layers"]["0"]
    other["directions"]["good"] = other["directions"]["evil"]
    del other["directions"]["evil"]
    made = columns(line(5), later, other)
    names, values = of(made, "layers")
    assert names == ["0", "1", "7"]
    assert np.isnan(values).tolist() == [[False, False, True], [False, False, False], [True, True, True]]
    assert of(made, "model", name="good")[1][2] == [0.5]


@pytest.mark.parametrize("odd", [None, "0.5", float("nan"), float("inf"), 10**400, True, {"a": 1}])
def test_what_is_no_finite_number_is_missing_and_the_rest_is_shown(odd: Any) -> None:
    changed = line(5)
    changed["directions"]["evil"]["layers"]["0"]["reach_cosine"] = odd
    values = of(columns(changed), "layers")[1][0]
    assert values[1] == -0.5
    assert np.isnan(values[0]) or odd in ("0.5", True)  # numpy reads those as numbers


def test_a_line_of_another_version_shows_what_it_has() -> None:
    old = line(5, unknown={"new": "key"})
    for part in (old["directions"]["evil"], *old["directions"]["evil"]["layers"].values()):
        del part["over_controls"]
    del old["directions"]["evil"]["modules"]
    made = columns(old, line(10))
    assert of(made, "model") == ([""], [[0.5], [0.5]])
    assert np.isnan(of(made, "model", "over_controls")[1][0][0])
    assert of(made, "modules")[0] == ["q_proj"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([], "not a reading"),
        ({"step": 5}, "not a reading"),
        ({"directions": {}, "step": "5"}, "no step"),
        ({"directions": {}, "step": True}, "no step"),
        ({"directions": {}, "step": 3}, "step 3 comes after step 10"),
    ],
)
def test_what_is_not_a_reading_is_refused_and_nothing_is_lost(bad: Any, why: str) -> None:
    made = columns(line(10))
    with pytest.raises(ValueError, match=why):
        made.put(bad)
    assert made.steps == [10]


def test_all_metrics_of_rules_have_a_column() -> None:
    assert METRICS == ("cosine", "reach_cosine", "dose", "z", "over_controls")


def test_what_is_kept_of_a_check_are_the_figures_that_a_reading_has() -> None:
    """A name that no line has would send each one the slow way."""
    assert {*METRICS} <= reading(1, 0.1).to_json()["directions"]["evil"].keys()
