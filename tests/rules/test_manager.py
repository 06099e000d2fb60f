import pytest

from tests.rules.test_engine import applied, rule
from tests.support.runs import reading
from weightwatch.reading.reading import Reading
from weightwatch.rules.manager import RuleManager

RULES = [rule(), rule(alert="slow", **{"for": 3}), rule(alert="kept", keep_firing_for=2)]


def wave(steps: int) -> list[Reading]:
    return [reading(step, 0.2 * (step % 4 > 1), checkpoint=f"checkpoint-{step}") for step in range(steps)]


def test_an_alert_names_the_newest_clean_checkpoint_that_still_exists() -> None:
    gone = {"checkpoint-2", "checkpoint-3"}
    manager = RuleManager([rule()], lambda name: name not in gone)
    manager.replay([reading(step, 0.0, checkpoint=f"checkpoint-{step}") for step in (1, 2, 3)])
    (alert,) = manager.apply(reading(4, 0.2))
    assert alert.last_clean == "checkpoint-1"
    assert manager.alerts == [alert]


def test_a_checkpoint_that_is_marked_later_counts_as_one_of_the_reading_before() -> None:
    manager = RuleManager([rule()], lambda _: True)
    manager.apply(reading(1, 0.0))
    manager.mark("checkpoint-1")
    manager.apply(reading(2, 0.2))
    manager.mark("checkpoint-2")  # at which the condition is true
    assert manager.alerts[0].last_clean == "checkpoint-1"
    assert manager.apply(reading(3, 0.0))[0].last_clean == "checkpoint-1"


def test_a_deleted_checkpoint_is_asked_for_once() -> None:
    asked: list[str] = []
    manager = RuleManager([rule()], lambda name: bool(asked.append(name)))  # type: ignore[func-returns-value]
    for step in range(1, 41):
        manager.apply(reading(step, 0.0, checkpoint=f"checkpoint-{step}"))
    for step in range(41, 61):
        manager.apply(reading(step, 0.2 * (step % 2)))
    assert len(manager.alerts) == 20
    assert sorted(asked) == sorted(f"checkpoint-{step}" for step in range(1, 41))


@pytest.mark.parametrize("cut", range(1, 24))
def test_resuming_from_recorded_states_is_going_on(cut: int) -> None:
    readings = wave(24)
    whole = applied(RULES, readings)
    first = RuleManager(RULES, lambda _: True)
    clean: dict[str, list[str]] = {}
    for made in readings[:cut]:
        first.apply(made)
        if made.checkpoint is not None:
            clean[made.checkpoint] = first.engine.clean
    again = RuleManager(RULES, lambda _: True)
    again.resume(first.states, clean, first.alerts)
    again.replay(readings[cut:])
    assert (again.engine, again.alerts) == (whole.engine, whole.alerts)
    assert len(whole.alerts) > 10
