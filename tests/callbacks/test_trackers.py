"""The trackers are the real libraries, offline, and what they have stored is read back."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback

from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import STRICT, lines, reading, steps, trainer
from weightwatch import WeightWatchCallback
from weightwatch.callbacks.trackers import Tracker
from weightwatch.rules.alert import Alert

MOVED = {"alert": "moved", "direction": "evil", "metric": "dose", "scope": "any_layer", "above": -1e9}
RULES = [MOVED, {**MOVED, "alert": "severe", "severity": "critical"}]
CHECKED = [0, 2, 4, 6, 8]


def trained(folder: Path, *trackers: str, **changes: Any) -> Trainer:
    """Train with checks every 2 steps and logs every 3."""
    config = {**STRICT, "rules": RULES, **changes.pop("config", {})}
    watching = WeightWatchCallback([low_rank(tiny_llama(), 5)], config=config)
    task = trainer(
        lora(tiny_llama()), folder, watching, report_to=list(trackers), logging_steps=3, run_name="tiny", **changes
    )
    task.train()
    return task


def expected(folder: Path) -> list[dict[str, float]]:
    """Return what a tracker should have of each recorded check."""
    found = []
    for line in lines(folder):
        figures = {name: line["directions"]["evil"][name] for name in ("cosine", "reach_cosine", "dose")}
        fires = float(line["step"] > 0)
        found.append(
            {
                "weightwatch/update_norm": pytest.approx(line["update_norm"]),
                **{f"weightwatch/evil/{name}": pytest.approx(value) for name, value in figures.items()},
                "weightwatch/alerts/moved": fires,
                "weightwatch/alerts/severe": fires,
            }
        )
    return found


def told(folder: Path) -> list[str]:
    return [Alert.from_json(json.dumps(line)).describe() for line in lines(folder, "alerts.jsonl")]


def own(logged: dict[str, Any]) -> dict[str, Any]:
    return {tag: value for tag, value in logged.items() if tag.startswith("weightwatch/")}


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a run's file of Weights & Biases, which is a log of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part, at = part + data[at + 7 : at + 7 + size], at + 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def test_weights_and_biases_has_every_check_over_the_trainers_axis_and_the_alerts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    trained(tmp_path, "wandb")
    wandb.finish()
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = list(records(file))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    checks = [row for row in rows if own(row)]
    assert [row["train/global_step"] for row in checks] == CHECKED
    assert [own(row) for row in checks] == expected(tmp_path)
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [3, 6]
    alerts = [record.alert for record in found if record.HasField("alert")]
    assert [(alert.title, alert.level) for alert in alerts] == [
        ("weightwatch: moved", "WARN"),
        ("weightwatch: severe", "ERROR"),
    ]
    assert [alert.text for alert in alerts] == told(tmp_path)


def test_trackio_has_every_check_and_the_alerts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio")
    trained(tmp_path, "trackio", project="tiny")
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
        alerts = database.execute("SELECT title, level, text FROM alerts ORDER BY id").fetchall()
    checks = [row for row in rows if own(row)]
    assert [row["train/global_step"] for row in checks] == CHECKED
    assert [own(row) for row in checks] == expected(tmp_path)
    assert [row["train/global_step"] for row in rows if "train/loss" in row] == [3, 6]
    assert [alert[:2] for alert in alerts] == [("weightwatch: moved", "warn"), ("weightwatch: severe", "error")]
    assert [text for _, _, text in alerts] == told(tmp_path)


def test_mlflow_has_every_check_at_its_step_and_the_alerts_as_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the database needs the whole of mlflow
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    trained(tmp_path, "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    for number, (step, figures) in enumerate(zip(CHECKED, expected(tmp_path), strict=True)):
        for tag, value in figures.items():
            metric = client.get_metric_history(run.info.run_id, tag)[number]
            assert (metric.step, metric.value) == (step, value)
    tags = {tag: text for tag, text in run.data.tags.items() if tag.startswith("weightwatch")}
    assert tags == dict(zip(["weightwatch.alerts.moved", "weightwatch.alerts.severe"], told(tmp_path), strict=True))
    assert run.info.status == "FINISHED"


def test_tensorboard_has_the_figures_once(tmp_path: Path) -> None:
    trained(tmp_path, "tensorboard")
    theirs, ours = trainers_run(tmp_path), EventAccumulator(str(tmp_path / "runs" / "weightwatch"))
    ours.Reload()
    assert [tag for tag in theirs.Tags()["scalars"] if "weightwatch" in tag] == []
    assert [event.step for event in ours.Scalars("evil/cosine")] == CHECKED


def test_without_a_run_folder_of_its_own_the_trainers_tensorboard_run_has_figures_and_alerts(tmp_path: Path) -> None:
    trained(tmp_path, "tensorboard", config={"tensorboard": False})
    found = trainers_run(tmp_path)
    for tag in ("update_norm", "evil/dose", "alerts/moved"):
        curve = [(event.step, event.value) for event in found.Scalars(f"train/weightwatch/{tag}")]
        assert curve == list(zip(CHECKED, [line[f"weightwatch/{tag}"] for line in expected(tmp_path)], strict=True))
    (event,) = found.Tensors("train/weightwatch/alerts/moved/text_summary")
    assert event.tensor_proto.string_val[0].decode() == told(tmp_path)[0]


def trainers_run(folder: Path) -> EventAccumulator:
    (own,) = [run for run in (folder / "runs").iterdir() if run.name != "weightwatch"]
    found = EventAccumulator(str(own))
    found.Reload()
    return found


def test_a_tracker_that_fails_ends_neither_the_training_nor_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*args: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if any("weightwatch" in tag for tag in logs):
            raise ConnectionError("the server is away")

    monkeypatch.setattr(TensorBoardCallback, "on_log", unreachable)
    task = trained(tmp_path, "tensorboard", config={"tensorboard": False, "on_error": "log"})
    assert task.state.global_step == 8
    assert steps(tmp_path) == CHECKED
    assert caplog.text.count("could not report step 0: the server is away") == 1
    assert len(lines(tmp_path, "errors.jsonl")) == len(CHECKED)


class Other(TrainerCallback):
    """A callback that is no tracker."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_log(self, *args: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.seen.append(logs)


def test_callbacks_that_are_no_trackers_see_the_trainers_logs_alone(tmp_path: Path) -> None:
    other = Other()
    watching = WeightWatchCallback([low_rank(tiny_llama(), 5)], config=STRICT)
    trainer(lora(tiny_llama()), tmp_path, other, watching).train()
    assert len(other.seen) == 5  # four logs and the summary
    assert [logs for logs in other.seen if own(logs)] == []


def test_a_tracker_of_any_kind_gets_the_figures_through_its_own_callback(tmp_path: Path) -> None:
    task, other = trainer(lora(tiny_llama()), tmp_path), Other()
    tracker = Tracker(other, task.args, task.state, task.control, task.model)
    tracker.check(reading(2, 0.1), [], {"moved": False})
    (logged,) = other.seen
    assert logged == {
        "weightwatch/update_norm": 1.0,
        **{f"weightwatch/evil/{name}": 0.1 for name in ("cosine", "reach_cosine", "dose")},
        "weightwatch/alerts/moved": 0.0,
    }


def test_the_log_history_has_every_check_with_step_and_epoch(tmp_path: Path) -> None:
    task = trained(tmp_path)
    entries = [entry for entry in task.state.log_history if own(entry)]
    assert [own(entry) for entry in entries] == expected(tmp_path)
    assert [(entry["step"], entry["epoch"]) for entry in entries] == [(step, step / 32) for step in CHECKED]
