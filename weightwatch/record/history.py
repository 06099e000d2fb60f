"""The record of a run: readings, alerts and faults as JSON lines in ``<output_dir>/weightwatch/``.

The files are the run's memory: they survive a crash, and a resumed run continues them. Lines are appended; the last one
is completed when its checkpoint has been written; and what a resumed or repeated run supersedes is moved to
``superseded.jsonl``.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightwatch.reading.reading import Reading
from weightwatch.rules.alert import Alert
from weightwatch.vectors.errors import WeightWatchError

READINGS, ALERTS, ERRORS, SUPERSEDED = "readings.jsonl", "alerts.jsonl", "errors.jsonl", "superseded.jsonl"


class History:
    """The record in one folder.

    Args:
        folder: Made at the first line that is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def readings(self) -> list[Reading]:
        """Return all readings, oldest first.

        Raises:
            WeightWatchError: A line is damaged; the message names the file and the line.
        """
        return [self._parsed(READINGS, i, Reading, line) for i, line in enumerate(self._lines(READINGS), 1)]

    def alerts(self) -> list[Alert]:
        """Return all alerts, oldest first.

        Raises:
            WeightWatchError: A line is damaged; the message names the file and the line.
        """
        return [self._parsed(ALERTS, i, Alert, line) for i, line in enumerate(self._lines(ALERTS), 1)]

    def add_reading(self, reading: Reading) -> None:
        """Append a reading."""
        self._append(READINGS, reading.to_json())

    def amend(self, reading: Reading) -> None:
        """Write a fuller reading in the place of the last one, if that is of the same check."""
        lines = self._lines(READINGS)
        if lines and _step(lines[-1]) == reading.step:
            lines.pop()
        self._rewrite(READINGS, [*lines, json.dumps(reading.to_json())])

    def add_alert(self, alert: Alert) -> None:
        """Append an alert."""
        self._append(ALERTS, alert.to_json())

    def add_error(self, step: int, error: BaseException) -> None:
        """Append a fault of the monitoring itself."""
        self._append(ERRORS, {"step": step, "error": type(error).__name__, "message": str(error)})

    def rewind(self, step: int) -> None:
        """Prepare to go on from a step: set aside what was recorded after it.

        Args:
            step: The step of the checkpoint that training resumes from; negative for a run from the beginning.
        """
        for name in (READINGS, ALERTS, ERRORS):
            lines = self._lines(name)
            kept = [line for line in lines if _step(line) <= step]
            if len(kept) < len(lines):
                for line in lines:
                    if not _step(line) <= step:
                        self._append(SUPERSEDED, {"file": name, "line": line})
                self._rewrite(name, kept)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("a+b") as file:
            # A line that a killed run left unfinished stays a line of its own.
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")

    def _rewrite(self, name: str, lines: Sequence[str]) -> None:
        draft = self.folder / f"{name}.part"
        draft.write_text("".join(line + "\n" for line in lines))
        draft.replace(self.folder / name)

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        # A power cut can leave bytes that are no text; they make a damaged line, not a file that can't be read.
        return path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []

    def _parsed(self, name: str, number: int, kind: Any, line: str) -> Any:
        try:
            return kind.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightWatchError(
                f"{self.folder / name}, line {number} is damaged ({error}). Move the line elsewhere to go on."
            ) from error


def _step(line: str) -> float:
    """Return the step of a line; a damaged one counts as after every step, so that it is set aside, not lost."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last
