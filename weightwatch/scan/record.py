"""What a scan has found so far: readings, the alerts that they raise, and which checkpoints they are of."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import Judge
from weightwatch.scan.checkpoints import content

_SETTINGS = "scan.json"


class ScanRecord:
    """Readings by step and alerts, in memory and, if wanted, on disk, where an interrupted scan takes them up.

    Args:
        folder: Folder for ``readings.jsonl``, ``alerts.jsonl`` and ``scan.json``; None: nothing is written.
        rules: By which readings are judged.

    Attributes:
        readings: All readings so far, by step.
        alerts: All alerts so far.
    """

    def __init__(self, folder: Path | None, rules: Sequence[Rule]) -> None:
        self.readings: list[Reading] = []
        self.alerts: list[Alert] = []
        self._rules = rules
        self._history = History(folder) if folder is not None else None
        self._settings: dict[str, str] = {}
        self._taken: dict[str, str] = {}

    def begin(self, run: Path, settings: Mapping[str, str]) -> None:
        """Take up the record of an earlier scan with the same key; that of another one is set aside.

        Args:
            run: Folder in which the checkpoints are.
            settings: What ``scan.json`` says: its ``key`` tells scans apart.
        """
        self._run, self._settings = run, dict(settings)
        if self._history is None:
            return
        known = content(self._history.folder / _SETTINGS) or {}
        if known.get("key") != settings["key"]:
            self._history.rewind(-1)
            return
        self._history.rewind(sys.maxsize)  # sets a line aside that a killed scan left unfinished
        self._taken = dict(known["taken"])
        self.readings = self._history.readings()
        self.alerts = self._replayed(self.readings)
        told = {(alert.alert, alert.step, alert.state) for alert in self._history.alerts()}
        for alert in self.alerts:
            if (alert.alert, alert.step, alert.state) not in told:
                self._history.add_alert(alert)

    def holds(self, checkpoint: str, step: int, mark: str) -> bool:
        """Whether a checkpoint is recorded with these very files."""
        return self._taken.get(checkpoint) == mark and self._knows(checkpoint, step)

    def make_room(self, checkpoint: str, step: int) -> None:
        """Set aside what was recorded of a checkpoint or of later steps, if anything was: the run has gone back."""
        later = bool(self.readings) and self.readings[-1].step > step
        if not later and not self._knows(checkpoint, step):
            return
        if self._history is not None:
            self._history.rewind(step - 1)
        self.readings = [reading for reading in self.readings if reading.step < step]
        self.alerts = self._replayed(self.readings)

    def add(self, reading: Reading, mark: str) -> None:
        """Judge a reading and write it down.

        Args:
            reading: Of the checkpoint that it names.
            mark: Tells the checkpoint's files.
        """
        self._taken[str(reading.checkpoint)] = mark
        self._write_settings()  # before the reading: a scan that is killed between them measures it again
        raised = self._replayed([*self.readings, reading])[len(self.alerts) :]
        self.readings.append(reading)
        self.alerts.extend(raised)
        if self._history is not None:
            self._history.add_reading(reading)
            for alert in raised:
                self._history.add_alert(alert)

    def _knows(self, checkpoint: str, step: int) -> bool:
        return any(reading.checkpoint == checkpoint and reading.step == step for reading in self.readings)

    def _replayed(self, readings: Sequence[Reading]) -> list[Alert]:
        """Return the alerts that readings raise; a checkpoint that was deleted since (``save_total_limit``) is none."""
        standing = [
            r if r.checkpoint and (self._run / r.checkpoint).exists() else replace(r, checkpoint=None) for r in readings
        ]
        return Judge.of(self._rules).replay(standing)[1]

    def _write_settings(self) -> None:
        if self._history is None:
            return
        self._history.folder.mkdir(parents=True, exist_ok=True)
        file = self._history.folder / _SETTINGS
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps({**self._settings, "taken": self._taken}, indent=1))
        draft.replace(file)
