import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import reading
from weightwatch.record import run_folder as module
from weightwatch.record.history import History
from weightwatch.record.run_folder import RunFolder, new_id, start_of
from weightwatch.scan.checkpoints import run as checkpoints

HOLD = """
import sys
from pathlib import Path
from weightwatch.record.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.claim(0, fresh=True)
print(folder.run, flush=True)
sys.stdin.read()
"""


def record(folder: Path, *steps: int, run: str | None = None) -> None:
    """Write a record as a run does, or as one of a version that had no ids."""
    for step in steps:
        History(folder).add_reading(reading(step, 0.1))
    if run is not None:
        (folder / "run.json").write_text(json.dumps({"run": run}))


def claimed(usual: Path, step: int = 0, run: str | None = None, *, fresh: bool | None = None) -> RunFolder:
    folder = RunFolder(usual)
    folder.claim(step, run, fresh=step == 0 if fresh is None else fresh)
    folder.release()
    return folder


def found(folder: Path) -> list[int]:
    return [r.step for r in History(folder).readings()]


def test_a_new_run_gets_an_id_that_its_folder_keeps(tmp_path: Path) -> None:
    folder = claimed(tmp_path / "run" / "weightwatch")
    assert json.loads((folder.path / "run.json").read_text()) == {"run": folder.run}
    assert claimed(folder.path, 5, folder.run).run == folder.run
    assert new_id() != new_id()


def test_each_run_finds_its_own_record_however_they_alternate(tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    runs = []
    for number in range(3):
        runs.append(claimed(usual).run)
        record(usual, 0, 10 + number)
    for number in (0, 2, 1, 0):
        assert claimed(usual, 10 + number, runs[number]).path == usual
        assert found(usual) == [0, 10 + number]
    assert len(list(tmp_path.glob("weightwatch*"))) == 3


def test_a_run_that_recorded_nothing_leaves_no_folder_behind(tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    first, second = claimed(usual), claimed(usual)
    assert first.run != second.run
    assert [path.name for path in tmp_path.glob("weightwatch*")] == ["weightwatch"]


@pytest.mark.parametrize("aside", [False, True])
def test_records_and_checkpoints_from_before_runs_had_ids_are_found_by_their_steps(aside: bool, tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    record(usual, 0, 5, 10)
    if aside:
        claimed(usual)
        record(usual, 0, 2)
    folder = claimed(usual, 10)
    assert found(usual) == [0, 5, 10]
    assert json.loads((usual / "run.json").read_text())["run"] == folder.run


def test_a_record_that_never_reached_the_checkpoint_is_not_gone_on_with(tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    record(usual, 0, 2, run="one")
    folder = claimed(usual, 10)
    assert (found(usual), found(tmp_path / "weightwatch-one")) == ([], [0, 2])
    assert folder.run != "one"


def test_a_checkpoint_of_an_unknown_run_begins_a_record_under_its_id(tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    record(usual, 0, 10, run="one")
    folder = claimed(usual, 10, "two")
    assert (folder.run, found(usual)) == ("two", [])


@pytest.mark.parametrize("note", ["", "{", "[]", '{"run": 3}', "\x00"])
def test_a_damaged_id_is_written_again(note: str, tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    record(usual, 0, 10)
    (usual / "run.json").write_text(note)
    assert claimed(usual, 10, "one").run == "one"
    assert found(usual) == [0, 10]
    assert json.loads((usual / "run.json").read_text()) == {"run": "one"}


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "weightwatch"  # such as the source of this package, with the working directory as output
    (package / "measure").mkdir(parents=True)
    first = claimed(package)
    record(first.path, 0, 10)
    assert first.path == tmp_path / f"weightwatch-{first.run}"
    assert claimed(package, 10, first.run).path == first.path
    assert [path.name for path in package.iterdir()] == ["measure"]


def test_a_folder_beside_is_no_checkpoint(tmp_path: Path) -> None:
    beside = tmp_path / f"weightwatch-{new_id()}"
    beside.mkdir()
    (beside / "adapters.safetensors").write_bytes(b"")
    assert checkpoints(tmp_path) == []


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "subprocess.Popen[str]":
    """Another process that records a run."""
    monkeypatch.setattr(module, "_PATIENCE", 0.3)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "weightwatch")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_live_run_is_left_alone_and_a_killed_one_is_not_waited_for(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    assert holder.stdout is not None
    theirs = holder.stdout.readline().strip()
    usual = tmp_path / "weightwatch"
    record(usual, 0, 10)
    new = claimed(usual)
    assert new.path == new.start == tmp_path / f"weightwatch-{new.run}"
    resumed = claimed(usual, 10, theirs)
    assert resumed.run not in (theirs, new.run)
    assert (resumed.path, resumed.start) == (tmp_path / f"weightwatch-{resumed.run}", usual)
    stranger = claimed(usual, 10, "another")
    assert (stranger.run, stranger.path, stranger.start) == ("another", tmp_path / "weightwatch-another", stranger.path)
    holder.kill()
    holder.communicate()
    assert claimed(usual, 10, theirs).path == usual
    assert found(usual) == [0, 10]
    record(resumed.path, 12)
    again = claimed(usual, 12, resumed.run)  # which has θ₀ of the run that was live
    assert (again.path, again.start) == (usual, tmp_path / f"weightwatch-{theirs}")


def test_theta0_of_a_run_is_where_its_record_is(tmp_path: Path) -> None:
    usual = tmp_path / "weightwatch"
    first = claimed(usual).run
    record(usual, 0)
    second = claimed(usual).run
    assert start_of(usual, None) == start_of(usual, second) == usual
    assert start_of(usual, first) == tmp_path / f"weightwatch-{first}"
    assert start_of(usual, "another") is None
    (usual / "run.json").unlink()  # of a version that had no ids
    record(usual, 0)
    assert start_of(usual, "another") == usual


def test_a_folder_that_cannot_be_written_can_be_claimed_again_under_the_same_id(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    folder = RunFolder(tmp_path / "run" / "weightwatch")
    with pytest.raises(OSError, match="run"):
        folder.claim(0, fresh=True)
    run = folder.run
    (tmp_path / "run").unlink()
    folder.claim(0, fresh=True)
    folder.release()
    assert run
    assert json.loads((folder.path / "run.json").read_text()) == {"run": run}
