"""Outputs that can't be written: the training goes on, the rules still stop it, and the other outputs are whole.

The tests may run as root, whom permissions do not stop. Links into ``/proc`` and to ``/dev/full`` refuse everyone: the
first no folder and no file, the second every byte, as a full disk does.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.limits import within
from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import At, lines, steps, trainer
from tests.test_session import toward
from weightwatch import WeightWatchCallback

STOP = {"alert": "far", "direction": "evil", "metric": "dose", "above": 0.02, "actions": ["log", "stop"]}


def watched(folder: Path, *more: Any, **settings: Any) -> Any:
    """Train a run whose update is moved along the direction in step 5, and return its trainer."""
    evil = low_rank(tiny_llama(), 5)
    config = {"every": 1, "rules": [STOP], "summary": False, **settings}
    there = At(5, lambda model: toward(model, 1.0))
    run = trainer(lora(tiny_llama()), folder, there, WeightWatchCallback([evil], config=config), *more, max_steps=8)
    with within(30):
        run.train()
    return run


def full(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to("/dev/full")


def a_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


def nowhere(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/proc/self/fdinfo")


BEFORE: dict[str, Callable[[Path], None]] = {
    "a file where the record should be": lambda run: a_file(run / "weightwatch"),
    "a record in a folder that takes no files": lambda run: nowhere(run / "weightwatch"),
    "a link to nowhere where the record should be": lambda run: (run / "weightwatch").symlink_to(run / "gone"),
    "a folder for a file of readings": lambda run: (run / "weightwatch" / "readings.jsonl").mkdir(parents=True),
    "a folder for a file of alerts": lambda run: (run / "weightwatch" / "alerts.jsonl").mkdir(parents=True),
    "a folder for the settings": lambda run: (run / "weightwatch" / "config.yaml").mkdir(parents=True),
    "a full disk under the readings": lambda run: full(run / "weightwatch" / "readings.jsonl"),
    "a full disk under the alerts": lambda run: full(run / "weightwatch" / "alerts.jsonl"),
    "a full disk under all": lambda run: (
        [full(run / "weightwatch" / f"{name}.jsonl") for name in ("readings", "alerts", "errors", "states")] and None
    ),
    "a file where TensorBoard's folder should be": lambda run: a_file(run / "runs"),
    "a TensorBoard folder that takes no files": lambda run: nowhere(run / "runs"),
}


@pytest.mark.parametrize("fault", BEFORE)
def test_a_stop_rule_stops_the_training_whatever_was_wrong_with_the_outputs_at_its_start(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    BEFORE[fault](run)
    assert watched(run).state.global_step == 5
    assert [record for record in caplog.records if record.levelno >= logging.WARNING and "far" in record.getMessage()]


AFTER: dict[str, Callable[[Path], object]] = {
    "the record is removed": lambda run: shutil.rmtree(run / "weightwatch"),
    "the whole output folder is removed": lambda run: shutil.rmtree(run),
    "the readings are removed": lambda run: (run / "weightwatch" / "readings.jsonl").unlink(),
    "the record becomes a file": lambda run: (shutil.rmtree(run / "weightwatch"), a_file(run / "weightwatch")),
    "TensorBoard's folder is removed": lambda run: shutil.rmtree(run / "runs"),
}


@pytest.mark.parametrize("fault", AFTER)
def test_a_stop_rule_stops_the_training_whatever_happens_to_the_outputs(fault: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert watched(run, At(3, lambda model: AFTER[fault](run))).state.global_step == 5


def test_what_could_not_be_written_is_written_when_it_can_be(tmp_path: Path) -> None:
    run, aside = tmp_path / "run", tmp_path / "aside"

    def away(model: object) -> None:
        (run / "weightwatch").rename(aside)
        a_file(run / "weightwatch")

    def back(model: object) -> None:
        (run / "weightwatch").unlink()
        aside.rename(run / "weightwatch")

    watched(run, At(2, away), At(4, back))
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    assert [line["alert"] for line in lines(run, "alerts.jsonl")] == ["far"]


def test_each_output_fails_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    full(run / "weightwatch" / "readings.jsonl")
    watched(run)
    assert [line["step"] for line in lines(run, "alerts.jsonl")] == [5]
    assert [line["error"] for line in lines(run, "errors.jsonl")][:1] == ["OSError"]
    assert list(run.rglob("events.out.tfevents.*"))
