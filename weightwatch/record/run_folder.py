"""The folder of a run's record: which run it belongs to, and which process writes to it.

A run has an id, which ``run.json`` and the run's checkpoints carry. The record of the newest run lies in
``<output_dir>/weightwatch``; those of others lie beside it, as ``weightwatch-<id>``, each with all of its files. A
process that records holds a lock, which ends with it.
"""

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex

from filelock import FileLock, Timeout
from pydantic import BaseModel

from weightwatch.record.history import READINGS, History
from weightwatch.vectors.weights.atomic import write_text

NOTE = "run.json"
STATE = "weightwatch"
"""The entry of ``stateful_callbacks`` in ``trainer_state.json`` that has the id."""

_PATIENCE = 10.0  # seconds: the workers of a killed training hold its lock until they notice
_OF_A_RECORD = (NOTE, READINGS, "reference.json")
_RUN = re.compile(r"\w+(\.\w+)*")

_logger = logging.getLogger("weightwatch")


class _Note(BaseModel):
    """The content of ``run.json``.

    Attributes:
        run: The run's id.
        start: The id of the run whose folder has θ₀, if it is another one.
    """

    run: str
    start: str | None = None


def new_id() -> str:
    """Return the id of a new run. A folder of that name is never taken for a checkpoint, since no part is a number."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{token_hex(2)}"


def carried(callbacks: object) -> str | None:
    """Return the id of the run that a checkpoint belongs to; None if it carries none.

    Args:
        callbacks: ``stateful_callbacks`` of its trainer's state.
    """
    ours = callbacks.get(STATE) if isinstance(callbacks, Mapping) else None
    run = ours.get("run") if isinstance(ours, Mapping) else None
    return run if isinstance(run, str) and _RUN.fullmatch(run) else None


def start_of(usual: Path, run: str | None) -> Path | None:
    """Return the folder that has θ₀ of a run: its own, or that of the live run that it was resumed from.

    Args:
        usual: ``<output_dir>/weightwatch``.
        run: The run's id; None for the newest run.

    Returns:
        The folder; None if the run has no record here.
    """
    record = usual if run is None else _record_of(usual, run)
    note = _note(record) if record is not None else None
    return _record_of(usual, note.start) if note is not None and note.start else record


class RunFolder:
    """The folder of one run's record.

    Args:
        usual: ``<output_dir>/weightwatch``.

    Attributes:
        path: The folder: the usual one, or one beside it if another process records there.
        run: The run's id; empty before ``claim``.
        start: The folder that has θ₀ of the run. It is another one if a live run is resumed a second time.
        aside: The folder to which the record of an earlier run was moved.
    """

    def __init__(self, usual: Path) -> None:
        self.path = self.start = self._usual = usual
        self.run = ""
        self.aside: Path | None = None
        lock = usual.parent / f".{usual.name}.lock"
        self._lock = FileLock(lock, timeout=_PATIENCE, thread_local=False, is_singleton=True)
        self._shared: str | None = None  # id of the live run whose θ₀ is used

    def claim(self, step: int, run: str | None = None, *, fresh: bool) -> None:
        """Take the folder for a run, and move the record of any other run aside.

        Args:
            step: The step that the run goes on from.
            run: The id that the checkpoint carries; None if it carries none, or for a new run.
            fresh: Whether the run is new.

        Raises:
            OSError: The folder can't be written. The call can be repeated, with the same id.
        """
        self.run = self.run or run or new_id()
        self._usual.parent.mkdir(parents=True, exist_ok=True)
        here = run_of(self._usual)
        if not self._locked():
            shares = not fresh and (here in (run, "") if run is not None else _reaches(self._usual, step))
            self._record_beside("another process records a run there", here if shares else None)
        elif here is None and any(entry.is_dir() for entry in self._usual.glob("*")):
            self._record_beside("it has other content than a record")
        elif fresh:
            self._clear(here)
        else:
            self._find(here, step, run)
        self.path.mkdir(exist_ok=True)
        if run_of(self.path) != self.run:
            note = _Note(run=self.run, start=self._shared)
            write_text(self.path / NOTE, note.model_dump_json(exclude_none=True) + "\n")
        self.start = start_of(self._usual, self.run) or self.start

    @property
    def suffix(self) -> str:
        """What the folder's name has beyond the usual one."""
        return self.path.name.removeprefix(self._usual.name)

    def release(self) -> None:
        """Let other processes record here."""
        with suppress(OSError):
            self._lock.release(force=True)

    def _locked(self) -> bool:
        """Take the lock. Where the file system has no locks, all runs get it."""
        try:
            self._lock.acquire()
        except Timeout:
            return False
        except NotImplementedError:
            return True
        return True

    def _record_beside(self, reason: str, live: str | None = None) -> None:
        """Record in a folder of this run's own.

        Args:
            reason: Why.
            live: The id of the live run that this one goes on from a checkpoint of; None if it is another one.
        """
        if live is not None and self._shared is None and not self._beside(self.run).is_dir():
            note = _note(self._usual)
            self._shared = note.start if note is not None and note.start else live
            self.run = new_id()  # the live run keeps its own
        self.path = self._beside(self.run)
        self.start = self._usual if self._shared is not None else self.path
        _logger.warning(
            "weightwatch: %s is left alone, since %s. This run is recorded in %s.", self._usual, reason, self.path
        )

    def _clear(self, here: str | None) -> None:
        """Move the record of an earlier run aside, if it has any readings."""
        readings = self._usual / READINGS
        if here not in (None, self.run) and readings.is_file() and readings.stat().st_size:
            _logger.warning(
                "weightwatch: A new run begins in %s. The record of the run before it is now in %s. To go on with that "
                "run instead, pass resume_from_checkpoint=.",
                self._usual,
                self._move_aside(here),
            )

    def _find(self, here: str | None, step: int, run: str | None) -> None:
        """Bring the record of the run that goes on to its place."""
        found: Path | None = None
        if run is None and here is not None and _reaches(self._usual, step):
            self.run = run = here or self.run  # a record and a checkpoint from before runs had an id
        elif run is None:
            found = self._newest_that_reaches(step)
            self.run = run_of(found) or self.run if found else self.run
        elif here != run and self._beside(run).is_dir():
            found = self._beside(run)
        if found is None and here in (None, "", self.run) and (run is not None or here is None):
            return
        if here is not None:
            _logger.warning(
                "weightwatch: The record in %s is of another run than the checkpoint, and is now in %s.",
                self._usual,
                self._move_aside(here),
            )
        if found is not None:
            found.rename(self._usual)

    def _newest_that_reaches(self, step: int) -> Path | None:
        beside = sorted(self._usual.parent.glob(f"{self._usual.name}-*"), key=lambda path: path.stat().st_mtime)
        return next((path for path in reversed(beside) if run_of(path) is not None and _reaches(path, step)), None)

    def _move_aside(self, here: str | None) -> Path:
        self.aside = self._beside(here or new_id())
        self._usual.rename(self.aside)
        return self.aside

    def _beside(self, run: str) -> Path:
        return self._usual.with_name(f"{self._usual.name}-{run}")


def _record_of(usual: Path, run: str) -> Path | None:
    """Return the folder with the record of a run; one without an id, of an earlier version, may be of any run."""
    beside = usual.with_name(f"{usual.name}-{run}")
    own = next((folder for folder in (usual, beside) if run_of(folder) == run), None)
    return usual if own is None and run_of(usual) == "" else own


def _note(folder: Path) -> _Note | None:
    """Return the content of ``run.json``; None if there is none, or it is damaged."""
    try:
        return _Note.model_validate_json((folder / NOTE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def run_of(folder: Path) -> str | None:
    """Return the id of the run whose record is in a folder; empty if it has none, None if there is no record."""
    note = _note(folder)
    if note is not None:
        return note.run
    return "" if any((folder / name).is_file() for name in _OF_A_RECORD) else None


def _reaches(folder: Path, step: int) -> bool:
    """Whether a record has a reading of a step, which every checkpoint has."""
    return History(folder).has(step)
