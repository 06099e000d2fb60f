from argparse import Namespace
from pathlib import Path

import pytest

from tests.support.references import record
from weightwatch.tensorboard_plugin.log_dirs import LogDirs


def log_dirs(logdir: object = "", spec: str = "") -> LogDirs:
    return LogDirs.of(Namespace(logdir=str(logdir), logdir_spec=spec))


def events(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.out.tfevents.1.host").touch()
    return folder


def test_a_run_has_the_name_of_its_output_folder(tmp_path: Path) -> None:
    record(tmp_path / "one", [0.1])
    record(tmp_path / "sweep" / "two", [0.1])
    earlier = (tmp_path / "one" / "weightwatch").rename(tmp_path / "one" / "weightwatch-20260101T000000Z.ab12")
    record(tmp_path / "scanned", [0.1])
    assert set(log_dirs(tmp_path).search().records) == {f"one/{earlier.name}", "sweep/two", "scanned"}
    assert set(log_dirs(tmp_path / "sweep" / "two").search().records) == {"two"}


def test_the_groups_of_logdir_spec_are_in_the_names(tmp_path: Path) -> None:
    record(tmp_path / "a" / "run", [0.1])
    record(tmp_path / "b", [0.1])
    found = log_dirs(spec=f"mine:{tmp_path}/a,theirs:{tmp_path}/b,gs://bucket/c").search()
    assert set(found.records) == {"mine/run", "theirs"}
    assert set(log_dirs(spec=f"{tmp_path}/a,{tmp_path}/b").search().records) == {"run", "b"}


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for place in "ab":
        record(tmp_path / place / "run", [0.1])
    found = log_dirs(spec=f"{tmp_path}/a,{tmp_path}/b").search().records
    assert set(found) == {"run", str(tmp_path / "b" / "run" / "weightwatch")}


def test_a_run_without_a_reading_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "new" / "weightwatch").mkdir(parents=True)
    (tmp_path / "new" / "weightwatch" / "run.json").write_text('{"run": "20260101T000000Z.ab12"}')
    assert set(log_dirs(tmp_path).search().records) == {"new"}


def test_the_output_folder_of_a_run_is_named_where_only_its_events_are_in_the_log_dir(tmp_path: Path) -> None:
    output = record(tmp_path / "run", [0.1])
    place = events(output / "runs" / "weightwatch")
    assert log_dirs(output).search().elsewhere == {}
    for started in (output / "runs", place):
        assert log_dirs(started).search().elsewhere == {place: output}
        assert log_dirs(started).search().records == {}
    shared = events(tmp_path / "shared" / "run-weightwatch")
    assert log_dirs(tmp_path / "shared").search().elsewhere == {shared: None}


def test_links_that_lead_out_of_the_log_dir_are_not_followed(tmp_path: Path) -> None:
    outside = record(tmp_path / "outside", [0.1])
    (tmp_path / "log" / "weightwatch").mkdir(parents=True)
    (tmp_path / "log" / "linked").symlink_to(outside)
    (tmp_path / "log" / "weightwatch" / "readings.jsonl").symlink_to(outside / "weightwatch" / "readings.jsonl")
    dirs = log_dirs(tmp_path / "log")
    found = dirs.search()
    assert found.links == [tmp_path / "log" / "linked"]
    assert not any(dirs.hold(folder / "readings.jsonl") for folder in found.records.values())


def test_a_log_dir_that_is_a_link_itself_is_its_target(tmp_path: Path) -> None:
    record(tmp_path / "real" / "run", [0.1])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    dirs = log_dirs(tmp_path / "link")
    assert dirs.hold(dirs.search().records["run"] / "readings.jsonl")


@pytest.mark.parametrize("logdir", ["gs://bucket/logs", "", "nowhere"])
def test_what_is_no_folder_here_has_no_runs(logdir: str) -> None:
    assert log_dirs(logdir).search().records == {}
    assert log_dirs(logdir).folders == ([Path("nowhere").resolve()] if logdir == "nowhere" else [])


def test_checkpoints_and_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    for name in (".cache", "checkpoint-5"):
        record(tmp_path / name / "run", [0.1])
    assert log_dirs(tmp_path).search().records == {}
