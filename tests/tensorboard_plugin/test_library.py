import os
from pathlib import Path

from tests.support.references import record
from tests.support.runs import reading
from weightwatch.record.history import History
from weightwatch.tensorboard_plugin.library import SHOWN, Library
from weightwatch.tensorboard_plugin.log_dirs import LogDirs


def library(folder: Path) -> Library:
    return Library(LogDirs({folder: ""}))


def checks(made: Library) -> dict[str, int]:
    return {name: len(run.columns.steps) for name, run in made.runs.items()}


def test_the_newest_runs_are_read_at_once_and_others_when_they_are_asked_for(tmp_path: Path) -> None:
    for number in range(SHOWN + 1):
        made = record(tmp_path / f"run-{number}", [0.1])
        os.utime(made / "weightwatch" / "readings.jsonl", (number, number))
    runs = library(tmp_path)
    runs.update()
    assert checks(runs) == {"run-0": 0, "run-1": 2, "run-2": 2, "run-3": 2}
    assert runs.newest() == ["run-3", "run-2", "run-1"]
    assert runs.run("run-0") is runs.runs["run-0"]
    runs.update()
    assert checks(runs)["run-0"] == 2
    assert runs.run("run-9") is None


def test_runs_come_grow_and_go(tmp_path: Path) -> None:
    runs = library(tmp_path)
    runs.update()
    assert runs.runs == {}
    output = record(tmp_path / "run", [0.1])
    runs.update()
    known = runs.run("run")
    runs.update()
    assert checks(runs) == {"run": 2}
    History(output / "weightwatch").add_reading(reading(20, 0.2))
    runs.update()
    assert checks(runs) == {"run": 3}
    assert runs.run("run") is known
    output.rename(tmp_path / "renamed")
    runs.update()
    assert list(runs.runs) == ["renamed"]


def test_a_thread_reads_what_is_there_at_the_start(tmp_path: Path) -> None:
    record(tmp_path / "run", [0.1])
    runs = library(tmp_path)
    runs.start()
    assert runs.searched.wait(60)
    assert list(runs.runs) == ["run"]


def test_a_record_that_can_t_be_opened_does_not_keep_others_from_being_read(tmp_path: Path) -> None:
    record(tmp_path / "good", [0.1])
    bad = record(tmp_path / "bad", [0.1]) / "weightwatch" / "readings.jsonl"
    bad.unlink()
    bad.mkdir()
    runs = library(tmp_path)
    runs.update()
    assert checks(runs)["good"] == 2
