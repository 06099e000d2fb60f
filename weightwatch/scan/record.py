"""What a scan has found so far: readings, the alerts that they raise, and which checkpoints they are of."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.rules.alert import Alert
from weightwatch.rules.manager import RuleManager
from weightwatch.scan.checkpoints import content
from weightwatch.vectors.weights.atomic import write_text

_SETTINGS, _SCANNED = "scan.json", "scanned.jsonl"


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
        self._rules = RuleManager(rules, self._exists)
        self._history = History(folder) if folder is not None else None
        self._marks: dict[str, str] = {}
        self._steps: dict[str, int] = {}

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, oldest first."""
        return self._rules.alerts

    def begin(self, run: Path, settings: Mapping[str, str]) -> None:
        """Take up the record of an earlier scan with the same key; that of another one is set aside.

        Args:
            run: Folder in which the checkpoints are.
            settings: What ``scan.json`` says: its ``key`` tells scans apart.
        """
        self._run = run
        if self._history is None:
            return
        folder = self._history.folder
        known = content(folder / _SETTINGS) or {}
        if known.get("key") != settings["key"]:
            self._history.rewind(-1)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _SCANNED).unlink(missing_ok=True)
            write_text(folder / _SETTINGS, json.dumps(dict(settings), indent=1))
            return
        self._history.rewind(sys.maxsize)  # sets a line aside that a killed scan left unfinished
        self._marks = _scanned(folder / _SCANNED)
        self._restart(list(self._history.readings()))
        told = {(alert.alert, alert.step, alert.state) for alert in self._history.alerts()}
        for alert in self.alerts:
            if (alert.alert, alert.step, alert.state) not in told:
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
        """
        raised = self._rules.apply(reading)
        if self._history is not None:
            # The mark comes first: a scan that is killed after it measures the checkpoint again.
            self._history.append(_SCANNED, {"checkpoint": reading.checkpoint, "mark": mark})
            self._history.add_reading(reading)
            for alert in raised:
                self._history.add_alert(alert)
        self._marks[str(reading.checkpoint)], self._steps[str(reading.checkpoint)] = mark, reading.step
        self.readings.append(reading)

    def _restart(self, readings: list[Reading]) -> None:
        """Apply the rules anew, to these readings."""
        self.readings = readings
        self._steps = {str(reading.checkpoint): reading.step for reading in readings}
        self._rules = RuleManager(self._given, self._exists)
        self._rules.replay(readings)

    def _exists(self, checkpoint: str) -> bool:
        return (self._run / checkpoint).exists()


class _Scanned(BaseModel, strict=True):
    """A line of ``scanned.jsonl``."""

    checkpoint: str
    mark: str


def _scanned(file: Path) -> dict[str, str]:
    """Return what tells the files of each checkpoint, but for damaged lines: those are measured again."""
    found: dict[str, str] = {}
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with suppress(ValidationError):
            entry = _Scanned.model_validate_json(line)
            found[entry.checkpoint] = entry.mark
    return found
