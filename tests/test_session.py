import asyncio
import json
import logging
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.models import lora, low_rank, move, tiny_llama
from tests.support.runs import lines, steps
from weightwatch import Alert, Config, Monitor, Reading, WeightWatchError
from weightwatch import monitor as monitor_module
from weightwatch.record.history import History
from weightwatch.report.base import Reporter
from weightwatch.requests import Requests
from weightwatch.session import Session

DRIFT = {"alert": "drift", "direction": "evil", "metric": "cosine", "above": 0.01}


def session(folder: Path, *, reporters: Sequence[Reporter] = (), **settings: Any) -> Session:
    config = Config.load({"every": 10, "summary": False, "rules": [DRIFT], **settings})
    monitor = Monitor([low_rank(tiny_llama(), 5)])
    return Session(monitor, config, folder / "weightwatch", folder / "runs" / "weightwatch", reporters=reporters)


def toward(model: PeftModel, dose: float) -> None:
    """Put as much of the direction into the model as its adapter can hold."""
    direction = low_rank(tiny_llama(), 5)
    for path, module in model.named_modules():
        delta = direction.deltas.get(path.removeprefix("base_model.model.") + ".weight")
        if delta is not None and "default" in getattr(module, "lora_B", {}):
            a = module.lora_A["default"].weight.data
            module.lora_B["default"].weight.data = dose * delta.dense() @ a.pinverse() / module.scaling["default"]


def checked(watched: Session, model: PeftModel, step: int, dose: float, checkpoint: str | None = None) -> list[Alert]:
    """Let the model move, and tell the session of the step, and of the checkpoint after it."""
    toward(model, dose)
    before = len(watched.alerts)
    watched.step_end(model, step, saves=checkpoint is not None, stops=False)
    if checkpoint:
        (watched.history.folder.parent / checkpoint).mkdir()
        watched.saved(model, step, checkpoint)
    return watched.alerts[before:]


def at(watched: Session) -> int:
    """Return the step of the newest reading."""
    assert watched.last is not None
    return watched.last.step


def test_a_new_run_begins_with_a_reading_of_nothing_moved(tmp_path: Path) -> None:
    watched = session(tmp_path)
    watched.begin(lora(tiny_llama()), 0)
    assert steps(tmp_path) == [0]
    assert watched.last is not None
    assert (watched.last.step, watched.last.update_norm, watched.firing) == (0, 0.0, ())


def test_the_settings_as_resolved_lie_beside_the_run(tmp_path: Path) -> None:
    watched = session(tmp_path, every=7)
    watched.begin(lora(tiny_llama()), 0)
    path = tmp_path / "weightwatch" / "config.yaml"
    assert Config.load(path) == watched.config
    assert yaml.safe_load(path.read_text())["on_error"] == "log"


def test_a_check_is_recorded_drawn_judged_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="weightwatch")
    model, watched = lora(tiny_llama()), session(tmp_path, rules=[{**DRIFT, "severity": "critical"}])
    watched.begin(model, 0)
    caplog.clear()
    (alert,) = checked(watched, model, 10, 1.0)
    assert (alert.alert, alert.state, alert.step) == ("drift", "firing", 10)
    assert watched.firing == ("drift",)
    assert [line["alert"] for line in lines(tmp_path, "alerts.jsonl")] == ["drift"]
    assert [(r.levelno, r.message) for r in caplog.records] == [(logging.CRITICAL, f"weightwatch: {alert.describe()}")]
    (resolved,) = checked(watched, model, 20, -1.0)
    assert (resolved.state, watched.firing) == ("resolved", ())
    assert (caplog.records[-1].levelno, caplog.records[-1].message) == (
        logging.INFO,
        f"weightwatch: {resolved.describe()}",
    )


def test_an_alert_whose_actions_leave_out_log_is_recorded_but_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, rules=[{**DRIFT, "actions": ["stop"]}])
    watched.begin(model, 0)
    caplog.clear()
    checked(watched, model, 10, 1.0)
    assert len(lines(tmp_path, "alerts.jsonl")) == 1
    assert caplog.records == []


def test_the_last_clean_checkpoint_is_one_that_still_stands(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path)
    watched.begin(model, 0)
    for step in (10, 20, 30):
        checked(watched, model, step, -1.0, f"checkpoint-{step}")
    for step in (20, 30):
        (tmp_path / f"checkpoint-{step}").rmdir()
    (alert,) = checked(watched, model, 40, 1.0)
    assert alert.last_clean == "checkpoint-10"
    assert lines(tmp_path, "alerts.jsonl")[0]["last_clean"] == "checkpoint-10"


def test_with_every_clean_checkpoint_deleted_none_is_named(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path)
    watched.begin(model, 0)
    checked(watched, model, 10, -1.0, "checkpoint-10")
    (tmp_path / "checkpoint-10").rmdir()
    (alert,) = checked(watched, model, 20, 1.0)
    assert alert.last_clean is None


def test_a_checkpoint_at_which_the_alert_fired_is_not_clean(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path)
    watched.begin(model, 0)
    checked(watched, model, 10, -1.0, "checkpoint-10")
    checked(watched, model, 20, 1.0, "checkpoint-20")
    checked(watched, model, 30, -1.0)
    (alert,) = checked(watched, model, 40, 1.0)
    assert alert.last_clean == "checkpoint-10"


def test_a_resumed_run_knows_what_fired_and_does_not_repeat_it(tmp_path: Path) -> None:
    model, first = lora(tiny_llama()), session(tmp_path)
    first.begin(model, 0)
    checked(first, model, 10, 1.0, "checkpoint-10")
    checked(first, model, 20, -1.0)
    toward(model, 1.0)
    again = session(tmp_path)
    again.begin(model, 10, checkpoint="checkpoint-10")
    assert (at(again), again.firing, steps(tmp_path)) == (10, ("drift",), [0, 10])
    assert checked(again, model, 20, 1.0) == []
    assert [line["step"] for line in lines(tmp_path, "alerts.jsonl")] == [10]
    assert len(lines(tmp_path, "superseded.jsonl")) == 2


def test_a_record_that_is_damaged_before_the_checkpoint_stops_a_resume_before_it_trains(tmp_path: Path) -> None:
    model, first = lora(tiny_llama()), session(tmp_path)
    first.begin(model, 0)
    path = tmp_path / "weightwatch" / "readings.jsonl"
    checked(first, model, 10, 1.0)
    path.write_text('{"step": 0}\n' + path.read_text())
    with pytest.raises(WeightWatchError, match=r"readings\.jsonl, line 1 is damaged"):
        session(tmp_path).begin(model, 10)


def test_a_rule_on_a_layer_that_is_not_there_is_an_error_at_the_beginning(tmp_path: Path) -> None:
    rule = {**DRIFT, "scope": {"layers": [17]}}
    with pytest.raises(WeightWatchError, match="the model has no layer 17; it has layer 0, layer 1"):
        session(tmp_path, rules=[rule]).begin(lora(tiny_llama()), 0)


def test_an_alert_acts_even_if_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rule = {**DRIFT, "actions": ["save", "stop"]}
    model, watched = lora(tiny_llama()), session(tmp_path, rules=[rule])
    watched.begin(model, 0)
    path = tmp_path / "weightwatch" / "readings.jsonl"
    path.unlink()
    path.mkdir()
    toward(model, 1.0)
    assert watched.step_end(model, 10, saves=False, stops=False) == Requests(save=True, stop=True)
    assert "could not write the record of step 10" in caplog.text
    assert [line["error"] for line in lines(tmp_path, "errors.jsonl")] == ["IsADirectoryError"]
    assert [line["alert"] for line in lines(tmp_path, "alerts.jsonl")] == ["drift"]  # files don't wait for one another
    path.rmdir()
    watched.step_end(model, 20, saves=False, stops=False)
    assert steps(tmp_path) == [10, 20]  # that of step 0 was deleted above


@pytest.mark.parametrize("obstacle", ["a file in its place", "a file in place of the output folder"])
def test_a_folder_that_cannot_be_written_at_first_has_the_whole_record_once_it_can(
    obstacle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    blocked = output / "weightwatch" if obstacle == "a file in its place" else output
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("in the way")
    rule = {**DRIFT, "actions": ["stop"]}
    model, watched = tiny_llama(), session(output, rules=[rule])  # in no checkpoint: θ₀ is copied
    watched.begin(model, 0)
    assert caplog.text.count("could not write the record of step 0") == 1
    move(model, seed=3, size=0.1)
    watched.step_end(model, 10, saves=False, stops=False)
    blocked.unlink()
    watched.step_end(model, 20, saves=False, stops=False)
    assert steps(output) == [0, 10, 20]
    norms = [line["update_norm"] for line in lines(output)]
    assert norms[0] == 0 < norms[1] == norms[2]
    watched.end(20)
    again = session(output, rules=[rule])
    again.begin(model, 20, run=watched.run)
    again.step_end(model, 30, saves=False, stops=False)
    assert [line["update_norm"] for line in lines(output)] == [*norms, norms[2]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's own writer
def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path)
    watched.begin(model, 0)
    shutil.rmtree(tmp_path / "weightwatch")
    shutil.rmtree(tmp_path / "runs")
    checked(watched, model, 10, 1.0)
    checked(watched, model, 20, 1.0)
    assert steps(tmp_path) == [10, 20]
    found = EventAccumulator(str(tmp_path / "runs" / "weightwatch"))
    found.Reload()
    assert [event.step for event in found.Scalars("evil/cosine")] == [10, 20]


def test_lines_that_could_not_be_written_to_the_end_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weightwatch").write_text("in the way")
    model, watched = lora(tiny_llama()), session(tmp_path)
    watched.begin(model, 0)
    checked(watched, model, 10, -1.0)
    watched.end(10)
    assert "lines of the record could not be written" in caplog.text


def test_under_raise_a_fault_of_a_reporter_is_raised_once_the_others_were_called(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, on_error="raise")
    watched.begin(model, 0)
    path = tmp_path / "weightwatch" / "readings.jsonl"
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        watched.step_end(model, 10, saves=False, stops=False)
    found = EventAccumulator(str(tmp_path / "runs" / "weightwatch"))
    found.Reload()
    assert [event.step for event in found.Scalars("evil/cosine")] == [0, 10]


def test_a_check_is_due_every_n_steps_before_a_checkpoint_and_at_the_end(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, every=3, rules=[])
    watched.begin(model, 0)
    for step in range(1, 8):
        watched.step_end(model, step, saves=step == 4, stops=step == 7)
    assert steps(tmp_path) == [0, 3, 4, 6, 7]


def test_a_save_that_was_not_made_is_asked_for_again(tmp_path: Path) -> None:
    rule = {**DRIFT, "actions": ["save"]}
    model, watched = lora(tiny_llama()), session(tmp_path, every=1, rules=[rule])
    watched.begin(model, 0)
    toward(model, 1.0)
    assert watched.step_end(model, 1, saves=False, stops=False) == Requests(save=True)
    assert watched.step_end(model, 2, saves=False, stops=False) == Requests(save=True)
    assert watched.saved(model, 2, "checkpoint-2") == Requests()
    assert watched.step_end(model, 3, saves=False, stops=False) == Requests()


def test_a_model_is_viewed_once_at_the_beginning_and_once_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewed: list[int] = []
    of = monitor_module.ModelView
    monkeypatch.setattr(monitor_module, "ModelView", lambda *given: (viewed.append(0), of(*given))[1])
    model, watched = lora(tiny_llama()), session(tmp_path, rules=[])
    watched.begin(model, 0)
    assert len(viewed) == 1
    watched.step_end(model, 10, saves=False, stops=False)
    assert len(viewed) == 2


def test_what_is_watched_is_said_at_the_start_each_check_while_it_runs_and_the_summary_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, summary=True)
    watched.begin(model, 0)
    said = capsys.readouterr().out
    assert said.startswith("weightwatch: watching evil every 10 steps; rules: drift; record: ")
    assert said.endswith(f"{watched.history.folder}\n")
    checked(watched, model, 10, 1.0)
    assert capsys.readouterr().out.startswith("weightwatch: step 10: reach cos. evil +")
    watched.end(10)
    assert "step 10" in capsys.readouterr().out


def test_a_rule_that_is_new_at_the_resume_is_judged_on_the_history_recorded_and_handed_out(tmp_path: Path) -> None:
    model, first = lora(tiny_llama()), session(tmp_path, rules=[])
    first.begin(model, 0)
    checked(first, model, 10, 1.0)
    first.end(10)
    again = session(tmp_path, rules=[{**DRIFT, "actions": ["log", "stop"]}])
    assert again.begin(model, 10) == Requests(stop=True)
    assert [(alert.alert, alert.step) for alert in again.alerts] == [("drift", 10)]
    assert [line["alert"] for line in lines(tmp_path, "alerts.jsonl")] == ["drift"]
    assert session(tmp_path, rules=[DRIFT]).begin(model, 10) == Requests()
    assert [line["alert"] for line in lines(tmp_path, "alerts.jsonl")] == ["drift"]


@pytest.mark.parametrize("states", ["noted", "removed", "of other rules"])
def test_a_resumed_run_goes_on_alike_from_noted_states_and_from_its_history(states: str, tmp_path: Path) -> None:
    rules = [{**DRIFT, "for": 2, "keep_firing_for": 1}]
    model, first = lora(tiny_llama()), session(tmp_path, rules=rules)
    first.begin(model, 0)
    for step, dose in ((10, -1.0), (20, 1.0), (30, 1.0)):
        checked(first, model, step, dose, f"checkpoint-{step}")
    file = tmp_path / "weightwatch" / "states.jsonl"
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 20, 30]
    if states == "removed":
        file.unlink()
    elif states == "of other rules":
        file.write_text(file.read_text().replace('"key": "', '"key": "x'))
    again = session(tmp_path, rules=rules)
    again.begin(model, 30, checkpoint="checkpoint-30")
    assert (again.firing, again.last, again.alerts) == (first.firing, first.last, first.alerts)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [10, 20, 30]
    assert checked(again, model, 40, -1.0) == []
    (resolved,) = checked(again, model, 50, -1.0)
    assert (resolved.state, resolved.last_clean) == ("resolved", "checkpoint-10")


def test_noted_states_spare_the_history_from_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, first = lora(tiny_llama()), session(tmp_path)
    first.begin(model, 0)
    checked(first, model, 10, 1.0, "checkpoint-10")
    monkeypatch.setattr(History, "readings", None)
    again = session(tmp_path)
    again.begin(model, 10, checkpoint="checkpoint-10")
    assert (at(again), again.firing) == (10, ("drift",))


# Faults


def repr_of(error: BaseException) -> str:
    return type(error).__name__


class TextlessError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Panic(BaseException):
    """As Rust libraries raise it."""


class Faulty(Reporter):
    """Raises something at a check, and takes what a session offers otherwise."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        if reading.step == 10:
            self._act()


def raises(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


FAULTS = [TextlessError(), SystemExit(3), asyncio.CancelledError(), GeneratorExit(), Panic(), MemoryError()]


@pytest.mark.parametrize("error", FAULTS, ids=repr_of)
@pytest.mark.parametrize("where", ["reporter", "measurement", "record"])
def test_no_kind_of_fault_ends_the_training(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = {**DRIFT, "actions": ["stop"]}
    model = lora(tiny_llama())
    watched = session(tmp_path, rules=[rule], reporters=[Faulty(raises(error))] if where == "reporter" else [])
    watched.begin(model, 0)
    if where == "measurement":
        monkeypatch.setattr(watched.monitor, "read", lambda *given: raises(error)())
    elif where == "record":
        monkeypatch.setattr(watched.history, "append", lambda *given: raises(error)())
    checked(watched, model, 10, 1.0)
    monkeypatch.undo()
    assert watched.step_end(model, 20, saves=False, stops=False).stop is (where == "measurement")
    assert watched.firing == ("drift",)
    assert steps(tmp_path)[-1] == 20
    if where != "record":
        assert [line["error"] for line in lines(tmp_path, "errors.jsonl")] == [type(error).__name__]


def test_ctrl_c_ends_the_training(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, reporters=[Faulty(raises(KeyboardInterrupt()))])
    watched.begin(model, 0)
    with pytest.raises(KeyboardInterrupt):
        watched.step_end(model, 10, saves=False, stops=False)


def test_a_signal_handler_that_ends_the_program_ends_it_in_a_check_as_well(tmp_path: Path) -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        terminated = Faulty(lambda: signal.raise_signal(signal.SIGTERM))
        model, watched = lora(tiny_llama()), session(tmp_path, reporters=[terminated])
        watched.begin(model, 0)
        with pytest.raises(SystemExit):
            watched.step_end(model, 10, saves=False, stops=False)
    finally:
        signal.signal(signal.SIGTERM, before)


# Which run a record is of


def test_a_new_run_moves_the_record_of_the_one_before_aside_and_each_goes_on_with_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first_model, second_model = tiny_llama(seed=1), tiny_llama(seed=2)
    first, start = session(tmp_path), [p.detach().clone() for p in first_model.parameters()]
    first.begin(first_model, 0)
    move(first_model, seed=3, size=0.1)
    first.step_end(first_model, 10, saves=False, stops=False)
    first.end(10)
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    record = lines(tmp_path)
    second = session(tmp_path)
    second.begin(second_model, 0)
    assert f"is now in {tmp_path / f'weightwatch-{first.run}'}" in caplog.text
    second.end(0)
    assert steps(tmp_path) == [0]
    again = session(tmp_path)
    again.begin(first_model, 10, run=first.run)
    assert lines(tmp_path) == record
    again.step_end(first_model, 20, saves=False, stops=False)
    change = torch.cat([(p.detach() - q).flatten() for p, q in zip(first_model.parameters(), start, strict=True)])
    assert lines(tmp_path)[-1]["update_norm"] == pytest.approx(float(change.norm()), rel=1e-4)
    assert (tmp_path / f"weightwatch-{second.run}" / "readings.jsonl").is_file()


def test_a_checkpoint_of_another_folder_does_not_go_on_with_the_record_that_lies_here(tmp_path: Path) -> None:
    model, other = lora(tiny_llama()), session(tmp_path)
    other.begin(model, 0)
    checked(other, model, 10, 1.0)
    other.end(10)
    watched = session(tmp_path)
    watched.begin(model, 10, run="20260101T000000Z.abcd")
    assert steps(tmp_path) == []
    assert watched.firing == ()
    assert (tmp_path / f"weightwatch-{other.run}").is_dir()


def test_a_record_that_lacks_the_checkpoint_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, first = lora(tiny_llama()), session(tmp_path)
    first.begin(model, 0)
    first.end(0)
    session(tmp_path).begin(model, 10, run=first.run)
    assert "has no reading of step 10: the newest before it is of step 0" in caplog.text
