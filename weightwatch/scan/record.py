"""What a scan has found so far: readings, the alerts that they raise, and which checkpoints they are of."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.rules.alert import Alert
from weightwatch.rules.manager import RuleManager
from weightwatch.scan.checkpoints import content
from weightwatch.setup import Setup
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text

_SETTINGS, _SCANNED, _LOCK = "scan.json", "scanned.jsonl", "lock"

_logger = logging.getLogger("weightwatch")


class _Scanned(BaseModel):
    """A line of ``scanned.jsonl``: a checkpoint, and what tells its files."""

    checkpoint: str
    mark: str


class ScanRecord:
    """Readings by step and alerts, in memory and, if wanted, on disk, where an interrupted scan takes them up.

    A checkpoint costs the same whatever was scanned before it: files are appended to, and the rules go on from the
    state that they are in.

    Args:
        folder: Folder for ``readings.jsonl``, ``alerts.jsonl``, ``scan.json`` (what tells scans apart) and
            ``scanned.jsonl`` (what tells the files of a checkpoint); None: nothing is written.
        rules: The rules that are applied to the readings.

    Attributes:
        readings: All readings so far, by step.
    """

    def __init__(self, folder: Path | None, rules: Sequence[Rule]) -> None:
        self.readings: list[Reading] = []
        self._run = Path()
        self._given = rules
        self._setup: Setup | None = None
        self._rules = RuleManager(rules, self._exists)
        self._history = History(folder) if folder is not None else None
        self._marks: dict[str, str] = {}
        self._steps: dict[str, int] = {}
        self._lock: FileLock | None = None

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, oldest first."""
        return self._rules.alerts

    def begin(self, run: Path, settings: Mapping[str, str], setup: Setup | None = None) -> None:
        """Take up the record of an earlier scan with the same key; that of another one is set aside.

        Args:
            run: Folder in which the checkpoints are.
            settings: What ``scan.json`` says: its ``key`` tells scans apart.
            setup: How the run was trained, which calibrated rules ask for; None if that is not known.

        Raises:
            WeightWatchError: Another scan records to the folder, or a file in it is a link to elsewhere.
        """
        self._run, self._setup = run, setup
        self._restart(self.readings)
        if self._history is None:
            return
        folder = self._history.folder
        self._take(folder)
        known = content(folder / _SETTINGS) or {}
        if known.get("key") != settings["key"]:
            self._history.rewind(-1)
            (folder / _SCANNED).unlink(missing_ok=True)
            write_text(folder / _SETTINGS, json.dumps(dict(settings), indent=1))
            return
        self._history.rewind(sys.maxsize)  # sets a line aside that a killed scan left unfinished
        self._marks = _scanned(folder / _SCANNED)
        self._restart(list(self._history.readings()))
        told = [_lasting(alert) for alert in self._history.alerts()]
        now = [_lasting(alert) for alert in self.alerts]
        if any(alert not in now for alert in told):  # the rules have changed since
            self._history.set_alerts_aside()
            told = []
        for alert in self.alerts:
            if _lasting(alert) not in told:
                self._history.add_alert(alert)

    def holds(self, checkpoint: str, step: int, mark: str) -> bool:
        """Whether a checkpoint is recorded with these very files."""
        return self._marks.get(checkpoint) == mark and self._steps.get(checkpoint) == step

    def make_room(self, checkpoint: str, step: int) -> None:
        """Set aside what was recorded of a checkpoint or of later steps, if anything was: the run has gone back."""
        later = bool(self.readings) and self.readings[-1].step > step
        if not later and self._steps.get(checkpoint) != step:
            return
        if self._history is not None:
            self._history.rewind(step - 1)
        self._restart([reading for reading in self.readings if reading.step < step])

    def add(self, reading: Reading, mark: str) -> None:
        """Apply the rules to a reading and write it down.

        Args:
            reading: Of the checkpoint that it names.
            mark: Tells the checkpoint's files.

        Raises:
            WeightWatchError: Another scan has taken the folder.
        """
        if not self.taken:
            raise WeightWatchError(
                "Another scan of this process records to the same folder. Start one after the other."
            )
        raised = self._rules.apply(reading)
        if self._history is not None:
            # The mark comes first: a scan that is killed after it measures the checkpoint again.
            self._history.append(_SCANNED, {"checkpoint": reading.checkpoint, "mark": mark})
            self._history.add_reading(reading)
            for alert in raised:
                self._history.add_alert(alert)
        self._marks[str(reading.checkpoint)], self._steps[str(reading.checkpoint)] = mark, reading.step
        self.readings.append(reading)

    @property
    def taken(self) -> bool:
        """Whether this record may be written: no other scan writes to its folder."""
        return self._history is None or self._lock is not None

    def close(self) -> None:
        """Let other scans write to the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take(self, folder: Path) -> None:
        """Make the folder this scan's own, until ``close`` or until a newer scan of this process takes it.

        Raises:
            WeightWatchError: A scan of another process writes to it, or something in it leads elsewhere.
        """
        if self._lock is not None:
            return
        if (before := _holders.get(folder.resolve())) is not None:
            before.close()
        folder.mkdir(parents=True, exist_ok=True)
        strange = next((path for path in (folder, *folder.iterdir()) if not _own(path)), None)
        if strange is not None:
            raise WeightWatchError(
                f"{strange} is a link or no regular file, so a scan would write elsewhere. Remove it, or pass another "
                "folder as --output."
            )
        lock = FileLock(folder / _LOCK, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise WeightWatchError(
                f"Another scan is recording to {folder}. Wait until it has ended, or pass another folder as --output."
            ) from error
        except NotImplementedError:
            _logger.warning("weightwatch: the disk of %s has no locks. Start no second scan of it meanwhile.", folder)
        self._lock = lock
        _holders[folder.resolve()] = self

    def _restart(self, readings: list[Reading]) -> None:
        """Apply the rules anew, to these readings."""
        self.readings = readings
        self._steps = {str(reading.checkpoint): reading.step for reading in readings}
        self._rules = RuleManager(self._given, self._exists, self._setup)
        self._rules.replay(readings)

    def _exists(self, checkpoint: str) -> bool:
        return (self._run / checkpoint).exists()


_holders: WeakValueDictionary[Path, ScanRecord] = WeakValueDictionary()
"""The records of this process that have taken a folder."""


def _lasting(alert: Alert) -> Alert:
    """Return an alert without the checkpoint to go back to, which may have been deleted since."""
    return replace(alert, last_clean=None)


def _own(path: Path) -> bool:
    """Whether a path is a folder or a file itself, and not a link to one."""
    return not path.is_symlink() and (path.is_dir() or path.is_file())


def _scanned(file: Path) -> dict[str, str]:
    """Return what tells the files of each checkpoint. One whose line is damaged is measured again."""
    found: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            entry = _Scanned.model_validate_json(line)
        except ValidationError:
            continue
        found[entry.checkpoint] = entry.mark
    return found
