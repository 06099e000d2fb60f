import json
from pathlib import Path
from typing import Any

import pytest

from tests.rules.test_alert import ALERT
from tests.support.references import record
from tests.support.runs import reading
from weightwatch.record.history import History
from weightwatch.tensorboard_plugin import growing_record
from weightwatch.tensorboard_plugin.growing_record import GrowingRecord
from weightwatch.tensorboard_plugin.log_dirs import LogDirs


def opened(folder: Path, log_dir: Path | None = None) -> GrowingRecord:
    return GrowingRecord(folder / "weightwatch", LogDirs({log_dir or folder: ""}))


def read(run: GrowingRecord) -> list[int]:
    while not run.update(60):
        pass
    return run.columns.steps


def test_only_what_is_new_is_read_and_the_version_tells_whether_anything_was(tmp_path: Path) -> None:
    run, history = opened(record(tmp_path, [0.1, 0.2])), History(tmp_path / "weightwatch")
    assert read(run) == [0, 10, 20]
    before = run.version
    assert read(run) == [0, 10, 20]
    assert run.version == before
    history.add_reading(reading(30, 0.3))
    assert read(run) == [0, 10, 20, 30]
    assert run.version > before


def test_a_line_counts_when_it_is_finished(tmp_path: Path) -> None:
    run, file = opened(record(tmp_path, [0.1])), tmp_path / "weightwatch" / "readings.jsonl"
    line = json.dumps(reading(20, 0.2).to_json())
    with file.open("a") as out:
        out.write(line[:50])
        out.flush()
        assert read(run) == [0, 10]
        assert run.notes == []
        out.write(line[50:] + "\n")
    assert read(run) == [0, 10, 20]


def test_a_checkpoint_that_is_noted_later_appears(tmp_path: Path) -> None:
    run, history = opened(record(tmp_path, [0.1])), History(tmp_path / "weightwatch")
    history.add_reading(reading(20, 0.2))
    read(run)
    history.amend(reading(20, 0.2, checkpoint="checkpoint-20"))
    assert read(run) == [0, 10, 20]
    assert run.columns.checkpoints == [None, None, "checkpoint-20"]


@pytest.mark.parametrize("longer", [False, True])
def test_a_run_that_goes_back_is_read_again(tmp_path: Path, longer: bool) -> None:
    run, history = opened(record(tmp_path, [0.1, 0.2, 0.3])), History(tmp_path / "weightwatch")
    read(run)
    history.rewind(10)
    for step in (15, 25, 35) if longer else (15,):
        history.add_reading(reading(step, 0.7))
    assert read(run) == [0, 10, 15, 25, 35][: 5 if longer else 3]
    assert run.columns.blocks["evil"].of("reach_cosine", "model", 3)[1][2] == pytest.approx(0.7)


def test_another_run_in_the_same_place_is_read_anew(tmp_path: Path) -> None:
    run = opened(record(tmp_path, [0.1, 0.2]))
    read(run)
    (tmp_path / "weightwatch").rename(tmp_path / "weightwatch-old")
    record(tmp_path, [0.5, 0.6, 0.7], number=3)
    assert read(run) == [0, 10, 20, 30]


@pytest.mark.parametrize("bad", ["{broken", "[]", "\x00\xff", '{"step": 5, "directions": {}}', "{" * 5000])
def test_a_damaged_line_is_named_once_and_the_others_are_read(tmp_path: Path, bad: str) -> None:
    run, file = opened(record(tmp_path, [0.1])), tmp_path / "weightwatch" / "readings.jsonl"
    with file.open("a", encoding="latin-1") as out:
        out.write(bad + "\n" + json.dumps(reading(30, 0.2).to_json()) + "\n")
    assert read(run) == read(run) == [0, 10, 30]
    (note,) = run.notes
    assert note.startswith("readings.jsonl, line 3 is left out (")


def test_of_many_damaged_lines_the_first_are_named(tmp_path: Path) -> None:
    run, file = opened(record(tmp_path, [0.1])), tmp_path / "weightwatch" / "readings.jsonl"
    with file.open("a") as out:
        out.write("broken\n" * 25)
    read(run)
    assert len(run.notes) == 11
    assert run.notes[-1] == "15 more lines are left out."


def test_of_a_large_record_a_sample_is_shown_until_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_record, "LARGE", 1000)
    monkeypatch.setattr(growing_record, "MOST", 10)
    run = opened(record(tmp_path, [0.1] * 200))
    assert not run.update(0)
    assert run.sampled
    assert len(run.columns.steps) == 10
    assert run.columns.steps[-1] > 1800
    assert 0 < run.share < 1
    assert read(run) == [10 * check for check in range(201)]
    assert not run.sampled
    assert run.share == 1


def test_the_record_has_its_alerts_settings_and_controls(tmp_path: Path) -> None:
    rules = [{"alert": "drift", "direction": "evil", "above": 0.25}]
    run, history = opened(record(tmp_path, [0.1], rules=rules)), History(tmp_path / "weightwatch")
    assert run.alerts() == []
    history.add_alert(ALERT)
    with (tmp_path / "weightwatch" / "alerts.jsonl").open("a") as out:
        out.write('{"alert": "of another version"}\n')
    assert run.alerts() == [ALERT]
    assert run.controls() == ["style"]
    config = run.config()
    assert config is not None
    assert [rule.threshold for rule in config.rules] == [0.25]
    (tmp_path / "weightwatch" / "config.yaml").write_text("of: another version")
    assert run.config() is None


@pytest.mark.parametrize("name", ["readings.jsonl", "alerts.jsonl", "config.yaml", "setup.json"])
def test_no_file_outside_of_the_log_dir_is_read(tmp_path: Path, name: str) -> None:
    outside = record(tmp_path / "outside", [0.1], rules=[{"alert": "drift", "direction": "evil", "above": 0.2}])
    History(outside / "weightwatch").add_alert(ALERT)
    inside = record(tmp_path / "log", [])
    (inside / "weightwatch" / name).unlink(missing_ok=True)
    (inside / "weightwatch" / name).symlink_to(outside / "weightwatch" / name)

    def content(log_dir: Path) -> Any:
        run = opened(inside, log_dir)
        return {
            "readings.jsonl": read(run),
            "alerts.jsonl": run.alerts(),
            "config.yaml": run.config(),
            "setup.json": run.controls(),
        }[name]

    assert not content(inside)
    assert content(tmp_path)
