import json
import logging
from pathlib import Path

import pytest

from weightwatch import WeightWatchError
from weightwatch.faults import Faults, attempt, raise_any
from weightwatch.record.journal import Journal


def recorded(folder: Path) -> list[str]:
    return [json.loads(line)["message"] for line in (folder / "errors.jsonl").read_text().splitlines()]


def test_a_fault_is_logged_once_and_recorded_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults(Journal(tmp_path), keep=False)
    for step in (10, 20):
        faults.note(step, WeightWatchError("NaN in w."))
    faults.note(30, TypeError("%s is odd"))
    assert recorded(tmp_path) == ["NaN in w.", "NaN in w.", "%s is odd"]
    first, second = caplog.records
    assert first.getMessage().startswith("weightwatch could not check step 10: NaN in w. Training continues.")
    assert (first.exc_info, second.exc_info is not None) == (None, True)
    assert "%s is odd" in second.getMessage()
    faults.raise_fatal()


def test_a_process_that_does_not_record_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Faults(None, keep=False).note(10, ValueError("x"))
    assert "could not check step 10" in caplog.text


def test_the_first_fault_is_kept_where_faults_are_to_be_raised(tmp_path: Path) -> None:
    faults = Faults(Journal(tmp_path), keep=True)
    faults.note(10, ValueError("first"))
    faults.note(20, ValueError("second"))
    with pytest.raises(ValueError, match="first"):
        faults.raise_fatal()
    assert not (tmp_path / "errors.jsonl").exists()


class Broken(logging.Handler):
    """A handler of the user's that ends the program."""

    def emit(self, record: logging.LogRecord) -> None:
        raise SystemExit(1)


def test_a_fault_in_noting_a_fault_is_survived(tmp_path: Path) -> None:
    logger, handler = logging.getLogger("weightwatch"), Broken()
    logger.addHandler(handler)
    try:
        Faults(Journal(tmp_path), keep=False).note(10, ValueError("x"))
    finally:
        logger.removeHandler(handler)
    assert recorded(tmp_path) == ["x"]


def test_an_attempt_returns_its_fault() -> None:
    fault = SystemExit(3)
    assert attempt(lambda: raise_any(fault)) is fault
    assert attempt(lambda: raise_any(None)) is None
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: raise_any(KeyboardInterrupt()))
