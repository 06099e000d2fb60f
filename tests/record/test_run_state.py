import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rules.test_engine import rule
from tests.support.runs import reading
from weightwatch.config import Rule
from weightwatch.reading.reading import Guarded
from weightwatch.record.history import History
from weightwatch.record.run_state import RunState
from weightwatch.report.recorder import Recorder
from weightwatch.rules.alert import Alert
from weightwatch.vectors import WeightWatchError

RULES = [rule(**{"for": 2}), rule(alert="low", below=-0.1)]


def run(folder: Path, steps: int, rules: list[Rule] = RULES) -> RunState:
    """Return the state of a run whose every second check is one of a checkpoint."""
    history = History(folder / "weightwatch")
    state, recorder = RunState(rules, ["evil"], history), Recorder(history)
    for step in range(steps):
        made = reading(step, 0.1 * (step % 6) - 0.2)
        recorder.check(made, state.take(made), {})
        if step % 2:
            (folder / f"checkpoint-{step}").mkdir()
            state.mark(f"checkpoint-{step}", save=True)
    return state


def recalled(folder: Path, step: int, rules: list[Rule] = RULES, names: tuple[str, ...] = ("evil",)) -> RunState:
    history = History(folder / "weightwatch")
    history.rewind(step)
    state = RunState(rules, names, history)
    Recorder(history).alerts(state.recall(step, f"checkpoint-{step}"))
    return state


def noted(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "weightwatch" / "states.jsonl").read_text().splitlines()]


def test_a_state_begins_before_any_reading(tmp_path: Path) -> None:
    state = RunState(RULES, ["evil"], History(tmp_path))
    assert (state.last, state.step, state.peaks, state.rules.alerts) == (None, -1, {}, [])


def test_peaks_are_the_largest_reach_cosines_with_their_steps(tmp_path: Path) -> None:
    peaks = run(tmp_path, 12).peaks
    assert peaks == {"evil": (pytest.approx(0.3), 5)}


@pytest.mark.parametrize("by", ["noted states", "the history"])
def test_what_a_guard_took_back_is_added_up_and_found_again(by: str, tmp_path: Path) -> None:
    history = History(tmp_path / "weightwatch")
    state, recorder = RunState(RULES, ["evil"], history), Recorder(history)
    for step in range(4):
        made = replace(reading(step, 0.0), guard=Guarded(1, {"evil": 0.25}, 0.1))
        recorder.check(made, state.take(made), {})
        if step == 1:
            (tmp_path / "checkpoint-1").mkdir()
            state.mark("checkpoint-1", save=True)
    state.note_guarded(Guarded(0, {"evil": 0.5}, 0.0))  # at the end of the training
    state.note_guarded(None)
    assert state.taken == {"evil": 1.5}
    if by == "the history":
        (tmp_path / "weightwatch" / "states.jsonl").unlink()
    assert recalled(tmp_path, 1).taken == {"evil": 0.5}


def test_an_alert_of_the_guard_is_added_once_and_found_again(tmp_path: Path) -> None:
    state = run(tmp_path, 4)
    alert = Alert.of_guard("evil", 3, "the guard failed: no room.")
    assert state.add(alert)
    assert not state.add(alert)
    Recorder(History(tmp_path / "weightwatch")).alerts([alert])
    assert alert in recalled(tmp_path, 3).rules.alerts


@pytest.mark.parametrize("step", [1, 5, 7, 11])
@pytest.mark.parametrize("by", ["noted states", "the history"])
def test_the_state_at_any_checkpoint_is_found_again(step: int, by: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "part").mkdir()
    run(tmp_path / "whole", 12)
    want = run(tmp_path / "part", step + 1)
    if by == "the history":
        (tmp_path / "whole" / "weightwatch" / "states.jsonl").unlink()
    found = recalled(tmp_path / "whole", step)
    assert found.shared == want.shared
    assert noted(tmp_path / "whole") == noted(tmp_path / "part")


def test_under_other_rules_the_history_is_read_and_noted_anew(tmp_path: Path) -> None:
    other = [rule(above=0.25)]
    run(tmp_path, 12)
    found = recalled(tmp_path, 11, other)
    raised = [(alert.alert, alert.step, alert.state) for alert in found.rules.alerts]
    assert raised == [("drift", 5, "firing"), ("drift", 6, "resolved"), ("drift", 11, "firing")]
    assert History(tmp_path / "weightwatch").alerts()[-1] == found.rules.alerts[-1]  # the one that was not recorded
    again = recalled(tmp_path, 11, other)
    assert again.rules.engine == found.rules.engine
    assert again.peaks == found.peaks
    assert noted(tmp_path) == [1, 3, 5, 7, 9, 11]


def test_an_alert_that_could_not_be_written_is_found_at_the_resume(tmp_path: Path) -> None:
    want = run(tmp_path, 6)
    assert want.rules.firing == ["drift"]
    (tmp_path / "weightwatch" / "alerts.jsonl").unlink()
    found = recalled(tmp_path, 5)
    assert [(a.alert, a.step) for a in History(tmp_path / "weightwatch").alerts()] == [("drift", 4)]
    assert found.rules.engine == want.rules.engine


@pytest.mark.parametrize("damage", ["{}", '{"step": 5, "key": 1}', "x"])
def test_damaged_states_are_no_obstacle(damage: str, tmp_path: Path) -> None:
    want = run(tmp_path, 6)
    file = tmp_path / "weightwatch" / "states.jsonl"
    file.write_text(file.read_text() + damage + "\n")
    found = recalled(tmp_path, 5)
    assert (found.last, found.peaks, found.rules.engine) == (want.last, want.peaks, want.rules.engine)


def test_readings_after_the_last_saved_state_are_applied_and_those_before_are_not_read(tmp_path: Path) -> None:
    want = run(tmp_path, 9)
    (tmp_path / "checkpoint-8").mkdir()
    want.mark("checkpoint-8", save=False)  # the run is killed before it writes the note
    readings = tmp_path / "weightwatch" / "readings.jsonl"
    readings.write_text("damaged\n" + readings.read_text())
    found = recalled(tmp_path, 8)
    assert found.shared == want.shared
    assert noted(tmp_path) == [1, 3, 5, 7, 8]


def test_rules_are_applied_from_where_on_the_history_holds_all_directions(tmp_path: Path) -> None:
    run(tmp_path, 12)
    found = recalled(tmp_path, 11, names=("evil", "good"))
    assert (found.step, found.rules.firing, found.rules.engine.states[0].false_for) == (11, [], 0)
    assert found.peaks == {"evil": (pytest.approx(0.3), 5)}


def test_a_checkpoint_whose_note_a_crash_prevented_is_given_to_its_reading(tmp_path: Path) -> None:
    run(tmp_path, 3)
    (tmp_path / "checkpoint-2").mkdir()
    found = recalled(tmp_path, 2)
    assert found.last is not None
    assert found.last.checkpoint == "checkpoint-2"
    assert [r.checkpoint for r in History(tmp_path / "weightwatch").readings()] == [
        None,
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_a_damaged_history_is_named_where_it_has_to_be_read(tmp_path: Path) -> None:
    run(tmp_path, 6)
    file = tmp_path / "weightwatch" / "readings.jsonl"
    file.write_text("{}\n" + file.read_text())
    assert recalled(tmp_path, 5).step == 5
    with pytest.raises(WeightWatchError, match=r"readings\.jsonl, line 1 is damaged"):
        recalled(tmp_path, 5, [rule()])
