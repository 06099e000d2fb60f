import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import PeftModel

from tests.support.models import lora, low_rank, move, tiny_llama
from tests.support.runs import lines, steps
from weightwatch import Config, Monitor, WeightWatchError
from weightwatch.session import Session

DRIFT = {"alert": "drift", "direction": "evil", "metric": "cosine", "above": 0.01}


def session(folder: Path, **settings: Any) -> Session:
    config = Config.load({"summary": False, "rules": [DRIFT], **settings})
    monitor = Monitor([low_rank(tiny_llama(), 5)])
    return Session(monitor, config, folder / "weightwatch", folder / "runs" / "weightwatch")


def toward(model: PeftModel, dose: float) -> None:
    """Put as much of the direction into the model as its adapter can hold."""
    direction = low_rank(tiny_llama(), 5)
    for path, module in model.named_modules():
        delta = direction.deltas.get(path.removeprefix("base_model.model.") + ".weight")
        if delta is not None and "default" in getattr(module, "lora_B", {}):
            a = module.lora_A["default"].weight.data
            module.lora_B["default"].weight.data = dose * delta.dense() @ a.pinverse() / module.scaling["default"]


def checked(watched: Session, model: PeftModel, step: int, dose: float, checkpoint: str | None = None) -> list[Any]:
    toward(model, dose)
    raised = watched.check(model, step)
    watched.record(raised)
    if checkpoint:
        (watched.history.folder.parent / checkpoint).mkdir()
        watched.mark(checkpoint)
    return raised


def test_a_new_run_begins_with_a_reading_of_nothing_moved(tmp_path: Path) -> None:
    watched = session(tmp_path)
    watched.begin(lora(tiny_llama()), 0)
    assert steps(tmp_path) == [0]
    assert watched.readings[0].update_norm == 0.0
    assert (watched.checked, watched.firing) == (0, ())


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
    again.begin(model, 10)
    assert (again.checked, again.firing, steps(tmp_path)) == (10, ("drift",), [0, 10])
    assert checked(again, model, 20, 1.0) == []
    assert [line["step"] for line in lines(tmp_path, "alerts.jsonl")] == [10]
    assert len(lines(tmp_path, "superseded.jsonl")) == 2


def test_a_record_that_is_damaged_before_the_checkpoint_stops_a_resume_before_it_trains(tmp_path: Path) -> None:
    model, first = lora(tiny_llama()), session(tmp_path)
    first.begin(model, 0)
    path = tmp_path / "weightwatch" / "readings.jsonl"
    path.write_text('{"step": 0}\n' + path.read_text())
    with pytest.raises(WeightWatchError, match=r"readings\.jsonl, line 1 is damaged"):
        session(tmp_path).begin(model, 10)


def test_a_rule_on_a_layer_that_is_not_there_is_an_error_at_the_beginning(tmp_path: Path) -> None:
    rule = {**DRIFT, "scope": {"layers": [17]}}
    with pytest.raises(WeightWatchError, match="the model has no layer 17; it has layer 0, layer 1"):
        session(tmp_path, rules=[rule]).begin(lora(tiny_llama()), 0)


def test_an_alert_is_returned_even_if_nothing_can_be_written(tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path)
    watched.begin(model, 0)
    move(model, seed=3)
    toward(model, 1.0)
    path = tmp_path / "weightwatch" / "readings.jsonl"
    path.unlink()
    path.mkdir()
    raised = watched.check(model, 10)
    assert [alert.alert for alert in raised] == ["drift"]
    with pytest.raises(IsADirectoryError):
        watched.record(raised)


def test_the_summary_is_printed_once_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, summary=True)
    watched.begin(model, 0)
    checked(watched, model, 10, 1.0)
    assert capsys.readouterr().out == ""
    watched.end()
    assert "step 10" in capsys.readouterr().out


def test_a_rule_that_is_new_at_the_resume_is_judged_on_the_history_recorded_and_handed_out(tmp_path: Path) -> None:
    model, first = lora(tiny_llama()), session(tmp_path, rules=[])
    first.begin(model, 0)
    checked(first, model, 10, 1.0)
    first.end()
    again = session(tmp_path, rules=[{**DRIFT, "actions": ["log", "stop"]}])
    (alert,) = again.begin(model, 10)
    assert (alert.alert, alert.step, alert.actions) == ("drift", 10, ("log", "stop"))
    assert [line["alert"] for line in lines(tmp_path, "alerts.jsonl")] == ["drift"]
    assert session(tmp_path, rules=[DRIFT]).begin(model, 10) == []
