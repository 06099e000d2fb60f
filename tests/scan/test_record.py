import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from tests.rules.test_engine import rule
from tests.support.runs import reading
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.scan.record import ScanRecord
from weightwatch.vectors import WeightWatchError

SETTINGS = {"key": "one", "reference": "base"}


def scanned(run: Path, count: int, **settings: str) -> ScanRecord:
    record = ScanRecord(run / "scan", [rule()])
    record.begin(run, {**SETTINGS, **settings})
    for step in range(1, count + 1):
        (run / name(step)).mkdir(exist_ok=True)
        if not record.holds(name(step), step, f"mark-{step}"):
            record.make_room(name(step), step)
            record.add(of(step), f"mark-{step}")
    return record


def name(step: int) -> str:
    return f"checkpoint-{step}"


def of(step: int) -> Reading:
    return reading(step, 0.1 * (step % 3), checkpoint=name(step))


def lines(run: Path, file: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "scan" / file).read_text().splitlines()]


def test_an_interrupted_scan_goes_on_to_what_a_whole_one_gives(tmp_path: Path) -> None:
    for folder in ("part", "whole"):
        (tmp_path / folder).mkdir()
    scanned(tmp_path / "part", 4)
    part, whole = scanned(tmp_path / "part", 9), scanned(tmp_path / "whole", 9)
    assert (part.readings, part.alerts) == (whole.readings, whole.alerts)
    for file in ("readings.jsonl", "alerts.jsonl", "scanned.jsonl", "scan.json"):
        assert (tmp_path / "part" / "scan" / file).read_text() == (tmp_path / "whole" / "scan" / file).read_text()
    by_step = {(alert.step, alert.state): alert.last_clean for alert in whole.alerts}
    assert [by_step[step, "firing"] for step in (2, 5, 8)] == [name(1), name(4), name(7)]
    assert [by_step[step, "resolved"] for step in (3, 6, 9)] == [name(3), name(6), name(9)]


def test_a_checkpoint_is_appended_and_nothing_is_written_again(tmp_path: Path) -> None:
    record = scanned(tmp_path, 5)
    before = {file.name: (file.stat().st_ino, file.read_bytes()) for file in (tmp_path / "scan").iterdir()}
    record.add(of(6), "mark-6")
    for file in (tmp_path / "scan").iterdir():
        inode, content = before[file.name]
        assert file.stat().st_ino == inode
        assert file.read_bytes().startswith(content)


@pytest.mark.parametrize("other", [{"key": "two"}, {}])
def test_the_record_of_another_scan_is_set_aside(other: dict[str, str], tmp_path: Path) -> None:
    scanned(tmp_path, 3)
    record = ScanRecord(tmp_path / "scan", [rule()])
    record.begin(tmp_path, {**SETTINGS, **other})
    assert len(record.readings) == (0 if other else 3)
    assert record.holds(name(2), 2, "mark-2") == (not other)


def test_a_run_that_has_gone_back_loses_what_came_later(tmp_path: Path) -> None:
    record = scanned(tmp_path, 6)
    record.make_room(name(3), 3)
    assert [r.step for r in record.readings] == [1, 2]
    assert [r.step for r in History(tmp_path / "scan").readings()] == [1, 2]
    record.add(replace(of(3), update_norm=2.0), "another")
    assert record.holds(name(3), 3, "another")
    assert not record.holds(name(4), 4, "mark-4")


def test_a_line_that_a_killed_scan_left_unfinished_is_measured_again(tmp_path: Path) -> None:
    scanned(tmp_path, 3)
    file = tmp_path / "scan" / "readings.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    record = ScanRecord(tmp_path / "scan", [rule()])
    record.begin(tmp_path, SETTINGS)
    assert [record.holds(name(step), step, f"mark-{step}") for step in (1, 2, 3)] == [True, True, False]


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    record = ScanRecord(None, [rule()])
    record.begin(tmp_path, SETTINGS)
    record.add(of(1), "mark")
    assert [r.step for r in record.readings] == [1]
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_mark_costs_no_other_checkpoint(tmp_path: Path) -> None:
    scanned(tmp_path, 3)
    file = tmp_path / "scan" / "scanned.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert len(scanned(tmp_path, 5).readings) == 5
    record = ScanRecord(tmp_path / "scan", [rule()])
    record.begin(tmp_path, SETTINGS)
    assert all(record.holds(name(step), step, f"mark-{step}") for step in range(1, 6))


@pytest.mark.parametrize(
    "damage", [b"[]", b"3", b'{"checkpoint": 3, "mark": "x"}', b'{"mark": "x"}', b"\xff\xfe", b"{"]
)
def test_a_damaged_line_of_what_was_scanned_has_its_checkpoint_measured_again(damage: bytes, tmp_path: Path) -> None:
    scanned(tmp_path, 3)
    file = tmp_path / "scan" / "scanned.jsonl"
    first, _, third = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([first, damage, third]) + b"\n")
    record = ScanRecord(tmp_path / "scan", [rule()])
    record.begin(tmp_path, SETTINGS)
    assert [record.holds(name(step), step, f"mark-{step}") for step in (1, 2, 3)] == [True, False, True]


def test_a_damaged_mark_is_measured_again(tmp_path: Path) -> None:
    scanned(tmp_path, 2)
    with (tmp_path / "scan" / "scanned.jsonl").open("ab") as file:
        file.write(b'[1]\n{"checkpoint": 3}\n\xff\xfe\n')
    record = ScanRecord(tmp_path / "scan", [rule()])
    record.begin(tmp_path, SETTINGS)
    assert [record.holds(name(step), step, f"mark-{step}") for step in (1, 2)] == [True, True]


def test_two_scans_of_two_processes_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    other = FileLock(tmp_path / "scan" / "lock")
    with other, pytest.raises(WeightWatchError, match=r"Another scan is recording to .*scan\. Wait until"):
        ScanRecord(tmp_path / "scan", [rule()]).begin(tmp_path, SETTINGS)
    assert {file.name for file in (tmp_path / "scan").iterdir()} <= {"lock"}
    record = scanned(tmp_path, 2)
    with pytest.raises(Timeout):
        other.acquire(timeout=0)
    record.close()
    with other:
        pass


def test_of_two_scans_in_one_process_the_newer_one_records(tmp_path: Path) -> None:
    first, second = (ScanRecord(tmp_path / "scan", [rule()]) for _ in range(2))
    first.begin(tmp_path, SETTINGS)
    second.begin(tmp_path, SETTINGS)
    second.add(of(1), "mark-1")
    assert not first.taken
    with pytest.raises(WeightWatchError, match="Another scan of this process"):
        first.add(of(1), "mark-1")
    first.begin(tmp_path, SETTINGS)
    assert first.holds(name(1), 1, "mark-1")
    assert len(lines(tmp_path, "readings.jsonl")) == 1


@pytest.mark.parametrize("entry", ["scan/readings.jsonl", "scan/superseded.jsonl", "scan/lock", "scan"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, entry: str) -> None:
    mine = tmp_path / "mine"
    if entry == "scan":
        mine.mkdir()
    else:
        (tmp_path / "scan").mkdir()
        mine.write_text("my own\n")
    (tmp_path / entry).symlink_to(mine)
    with pytest.raises(WeightWatchError, match="is a link or no regular file, so a scan would write elsewhere"):
        scanned(tmp_path, 1)
    assert list(mine.iterdir()) == [] if mine.is_dir() else mine.read_text() == "my own\n"


def test_a_pipe_in_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    os.mkfifo(tmp_path / "scan" / "readings.jsonl")
    with pytest.raises(WeightWatchError, match="no regular file"):
        scanned(tmp_path, 1)


def test_alerts_of_other_rules_are_set_aside(tmp_path: Path) -> None:
    scanned(tmp_path, 3)
    readings, before = lines(tmp_path, "readings.jsonl"), lines(tmp_path, "alerts.jsonl")
    assert [(alert["step"], alert["threshold"]) for alert in before] == [(2, 0.1), (3, 0.1)]
    for above, fired in ((0.15, [2, 3]), (0.25, [])):
        record = ScanRecord(tmp_path / "scan", [rule(above=above)])
        record.begin(tmp_path, SETTINGS)
        record.close()
        found = History(tmp_path / "scan").alerts()
        assert [(alert.step, alert.threshold) for alert in found] == [(step, above) for step in fired]
    assert lines(tmp_path, "readings.jsonl") == readings
    aside = [json.loads(str(entry["line"])) for entry in lines(tmp_path, "superseded.jsonl")]
    assert aside[:2] == before
    assert [alert["threshold"] for alert in aside[2:]] == [0.15, 0.15]
