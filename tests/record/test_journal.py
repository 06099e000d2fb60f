import json
from pathlib import Path

import pytest

from tests.record.test_history import STATE
from tests.rules.test_alert import ALERT
from tests.support.runs import reading
from weightwatch.record import journal as module
from weightwatch.record.history import History
from weightwatch.record.journal import Journal


def blocked(journal: Journal, name: str) -> Path:
    """Put a folder in the place of a file of the record."""
    path = journal.folder / name
    path.mkdir(parents=True)
    return path


def steps(journal: Journal) -> list[tuple[int, str | None]]:
    return [(r.step, r.checkpoint) for r in History(journal.folder).readings()]


def test_a_journal_is_a_history_where_all_can_be_written(tmp_path: Path) -> None:
    journal, history = Journal(tmp_path / "journal"), History(tmp_path / "history")
    for record in (journal, history):
        record.add_reading(reading(0, 0.1))
        record.add_reading(reading(5, 0.2))
        record.amend(reading(5, 0.2, checkpoint="checkpoint-5"))
        record.add_alert(ALERT)
        record.add_state(STATE)
        record.add_error(5, ValueError("x"))
    for file in history.folder.iterdir():
        assert (journal.folder / file.name).read_bytes() == file.read_bytes()
    assert (journal.fault, journal.waiting) == (None, 0)


def test_what_cannot_be_written_waits_and_is_written_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    obstacle = blocked(journal, "readings.jsonl")
    for step in (0, 5):
        journal.add_reading(reading(step, 0.1))
    journal.amend(reading(5, 0.1, checkpoint="checkpoint-5"))
    assert isinstance(journal.fault, IsADirectoryError)
    assert journal.waiting == 2
    obstacle.rmdir()
    journal.add_reading(reading(10, 0.1))
    assert steps(journal) == [(0, None), (5, "checkpoint-5"), (10, None)]
    assert (journal.fault, journal.waiting) == (None, 0)


def test_a_reading_that_was_written_before_the_fault_is_amended_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_reading(reading(5, 0.1))
    (tmp_path / "readings.jsonl").rename(tmp_path / "away")
    obstacle = blocked(journal, "readings.jsonl")
    journal.amend(reading(5, 0.1, checkpoint="checkpoint-5"))
    assert journal.waiting == 1
    obstacle.rmdir()
    (tmp_path / "away").rename(tmp_path / "readings.jsonl")
    journal.flush()
    assert steps(journal) == [(5, "checkpoint-5")]


def test_an_amended_reading_that_is_not_on_disk_is_written_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.amend(reading(5, 0.1, checkpoint="checkpoint-5"))
    assert steps(journal) == [(5, "checkpoint-5")]


def test_files_do_not_wait_for_one_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    blocked(journal, "readings.jsonl")
    journal.add_reading(reading(0, 0.1))
    journal.add_alert(ALERT)
    journal.add_error(0, ValueError("x"))
    assert History(tmp_path).alerts() == [ALERT]
    assert json.loads((tmp_path / "errors.jsonl").read_text())["message"] == "x"


def test_nothing_is_written_before_the_opening_succeeds(tmp_path: Path) -> None:
    journal, tries = Journal(tmp_path), []

    def opens() -> None:
        tries.append(0)
        if len(tries) < 3:
            raise PermissionError(13, "Permission denied")

    journal.opening.append(opens)
    journal.add_reading(reading(0, 0.1))
    journal.add_reading(reading(5, 0.1))
    assert list(tmp_path.iterdir()) == []
    journal.add_reading(reading(10, 0.1))
    assert [step for step, _ in steps(journal)] == [0, 5, 10]
    assert len(tries) == 3


def test_removed_states_do_not_come_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.add_state(STATE)
    (tmp_path / "states.jsonl").rename(tmp_path / "away")
    blocked(journal, "states.jsonl")
    journal.forget_states()
    later = STATE.model_copy(update={"step": 10})
    journal.add_state(later)
    (tmp_path / "states.jsonl").rmdir()
    (tmp_path / "away").rename(tmp_path / "states.jsonl")
    journal.flush()
    assert journal.states() == [later]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "_MOST", 3)
    journal = Journal(tmp_path)
    obstacle = blocked(journal, "readings.jsonl")
    for step in range(5):
        journal.add_reading(reading(step, 0.1))
    obstacle.rmdir()
    journal.flush()
    assert [step for step, _ in steps(journal)] == [2, 3, 4]
    assert "its oldest lines are lost" in caplog.text
