from typing import Any

import pytest
import torch
from torch import nn

from tests.rules.test_alert import ALERT
from weightwatch import Alert, Config, Direction, Monitor, WeightWatchError
from weightwatch.guarding import Guarding
from weightwatch.update.sharding.ranks import ALONE, Ranks

UP = Direction.from_tensors({"weight": torch.tensor([[1.0, 0.0]])}, name="up")


class Failures:
    """Takes down what a failed guard tells."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, bool]] = []

    def __call__(self, step: int, fault: BaseException | None, alert: Alert, *, stops: bool) -> None:
        self.seen.append((step, alert.describe(), stops))


class OneOfTwo(Ranks):
    """Two processes, of which this one alone fails."""

    def add(self, values: Any, error: BaseException | None = None) -> Any:
        return values

    def agreed(self, make: Any) -> Any:
        return make()


def guarding(on_guard_error: str = "stop", ranks: Ranks = ALONE, **guard: Any) -> tuple[Guarding, nn.Module, Failures]:
    model, failures = nn.Linear(2, 1, bias=False), Failures()
    monitor = Monitor([UP], reference={"weight": model.weight.detach().clone()})
    rule = {"alert": "a", "direction": "up", "above": 0.1, "actions": ["guard"]}
    rules = [rule] if guard.get("when") == "alert" else []
    config = Config.load({"guard": {"witness": "none", **guard}, "on_guard_error": on_guard_error, "rules": rules})
    made = Guarding(monitor, config, ranks, failures)
    made.begin(0, model, None, None, [])
    return made, model, failures


def push(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        next(model.parameters())[0, 0] += value


def test_what_a_step_moves_is_taken_back_and_accounted_for() -> None:
    made, model, _ = guarding(mode="update")
    before = model.weight.detach().clone()  # type: ignore[operator,union-attr]  # of nn.Linear
    push(model, 3.0)
    made.after_step(1)
    assert torch.allclose(next(model.parameters()), before, atol=1e-6)
    found = made.account(1.0)
    assert found is not None
    assert (found.steps, found.dose["up"]) == (1, pytest.approx(3.0, rel=1e-5))


def test_it_is_armed_by_an_alert_that_names_the_guard_and_by_no_other() -> None:
    made, model, _ = guarding(when="alert")
    assert not made.arms([ALERT])
    push(model, 3.0)
    made.after_step(1)
    found = made.account(1.0)
    assert found is not None
    assert found.steps == 0
    assert made.arms([Alert(**{**vars(ALERT), "actions": ("guard",)})])
    made.arm(True)
    made.after_step(2)
    found = made.account(1.0)
    assert found is not None
    assert found.steps == 1


@pytest.mark.parametrize("on_guard_error", ["stop", "continue"])
def test_a_fault_stops_the_training_or_switches_the_guard_off_and_is_told_once(on_guard_error: str) -> None:
    made, model, failures = guarding(on_guard_error)
    push(model, float("nan"))
    if on_guard_error == "stop":
        with pytest.raises(WeightWatchError, match=r"The guard failed at step 3: .*on_guard_error: continue"):
            made.after_step(3)
    else:
        made.after_step(3)
    made.after_step(4)
    ((step, told, stops),) = failures.seen
    assert (step, stops) == (3, on_guard_error == "stop")
    assert told.startswith("guard-failed (critical) at step 3: the guard failed: ")
    assert not made.under_way


def test_a_parameter_that_is_replaced_stops_the_training_and_is_named() -> None:
    made, model, failures = guarding(mode="update")
    made.after_step(1)
    model.weight = nn.Parameter(torch.zeros(1, 2))
    with pytest.raises(WeightWatchError, match=r"The guard failed at step 2: weight was replaced by another parameter"):
        made.after_step(2)
    assert [step for step, *_ in failures.seen] == [2]


def test_a_fault_on_one_of_two_processes_stops_both_since_their_weights_may_differ() -> None:
    made, model, failures = guarding("continue", OneOfTwo(0, 2))
    push(model, float("nan"))
    with pytest.raises(WeightWatchError, match=r"on 1 of 2 processes: .* their weights may differ"):
        made.after_step(3)
    assert failures.seen[0][2]


def test_without_a_guard_nothing_happens() -> None:
    made = Guarding(Monitor([UP]), Config.load({}), ALONE, Failures())
    made.begin(0, nn.Linear(2, 1), None, None, [])
    made.before_step(1)
    made.after_step(1)
    assert (made.end(1), made.account(1.0), made.under_way, made.required) == (None, None, False, False)


@pytest.mark.parametrize(("mode", "event"), [("update", "on_optimizer_step"), ("gradient", "on_pre_optimizer_step")])
def test_a_step_that_goes_past_the_guard_is_a_fault(mode: str, event: str) -> None:
    made, _, failures = guarding(mode=mode)
    made.before_step(1)
    made.after_step(1)
    made.step_end(1)
    made.step_end(1)  # as at the end of an epoch
    with pytest.raises(
        WeightWatchError, match=rf"not called between step 1 and step 2: the trainer sends no `{event}`"
    ):
        made.step_end(2)
    assert len(failures.seen) == 1


def test_a_step_before_the_guard_is_armed_is_not_one_that_goes_past_it() -> None:
    made, _, failures = guarding(when="alert")
    made.step_end(3)
    made.after_step(4)
    made.arm(True)
    made.step_end(4)
    assert failures.seen == []


def test_what_is_added_is_added_within_the_steps_alone() -> None:
    made, model, _ = guarding(mode="preventative")
    x = torch.tensor([[1.0, 0.0]])
    plain = model(x)
    with made.forward():
        assert torch.allclose(model(x), plain + 1)
    assert torch.equal(model(x), plain)
    made.after_step(1)
