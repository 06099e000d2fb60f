"""The record of a run: readings, alerts and faults as JSON lines in ``<output_dir>/weightwatch/``.

The files are the run's memory: they survive a crash, and a resumed run continues them. Lines are appended; the last
reading is completed in place when its checkpoint has been written; and what a resumed or repeated run supersedes is
moved to ``superseded.jsonl``. Nothing reads or rewrites a whole file, so the cost does not grow with the run.
"""

import json
import os
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from weightwatch.reading.reading import Reading
from weightwatch.rules.alert import Alert
from weightwatch.vectors.errors import WeightWatchError

READINGS, ALERTS, ERRORS, SUPERSEDED = "readings.jsonl", "alerts.jsonl", "errors.jsonl", "superseded.jsonl"
STATES = "states.jsonl"
"""The rules' states at each checkpoint. They follow from the readings and spare a resumed run the reading of them."""

_CHUNK = 1 << 16  # bytes that are read at a time from the end of a file


class History:
    """The record in one folder.

    Args:
        folder: Made at the first line that is written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def readings(self) -> Iterator[Reading]:
        """Yield all readings, oldest first.

        Raises:
            WeightWatchError: A line is damaged; the message names the file and the line.
        """
        return self._parsed(READINGS, Reading)

    def alerts(self) -> list[Alert]:
        """Return all alerts, oldest first.

        Raises:
            WeightWatchError: A line is damaged; the message names the file and the line.
        """
        return list(self._parsed(ALERTS, Alert))

    def last_reading(self) -> Reading | None:
        """Return the newest reading; None if there is none or its line is damaged."""
        line = next(self._backwards(READINGS), (0, b""))[1]
        try:
            return Reading.from_json(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def states(self) -> list[dict[str, Any]]:
        """Return what ``add_state`` has noted, oldest first; nothing where a line is damaged."""
        try:
            return [json.loads(line) for line in self._lines(STATES)]
        except ValueError:
            return []

    def add_reading(self, reading: Reading) -> None:
        """Append a reading."""
        self._append(READINGS, reading.to_json())

    def amend(self, reading: Reading) -> None:
        """Write a fuller reading in the place of the last one, if that is of the same check."""
        at, before = next(self._backwards(READINGS), (0, b""))
        if not before or _step(before) != reading.step:
            self.add_reading(reading)
            return
        after = json.dumps(reading.to_json()).encode() + b"\n"
        # Written is only what differs, in one go: a crash leaves the old line or the new one.
        same = next(
            (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(map(len, (before, after)))
        )
        with (self.folder / READINGS).open("r+b") as file:
            file.seek(at + same)
            file.write(after[same:])
            file.truncate(at + len(after))

    def add_alert(self, alert: Alert) -> None:
        """Append an alert."""
        self._append(ALERTS, alert.to_json())

    def add_error(self, step: int, error: BaseException) -> None:
        """Append a fault of the monitoring itself."""
        self._append(ERRORS, {"step": step, "error": type(error).__name__, "message": str(error)})

    def add_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Append the rules' states at a checkpoint."""
        self._append(STATES, {"step": step, **state})

    def forget_states(self) -> None:
        """Remove the rules' states: the rules have changed, or a checkpoint has no note."""
        (self.folder / STATES).unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Prepare to go on from a step: set aside what was recorded after it.

        Args:
            step: The step of the checkpoint that training resumes from; negative for a run from the beginning.
        """
        for name in (READINGS, ALERTS, ERRORS, STATES):
            later = list(takewhile(lambda found: not _step(found[1]) <= step, self._backwards(name)))
            for _, line in reversed(later) if name != STATES else ():
                text = line.decode("utf-8", errors="replace").removesuffix("\n")
                self._append(SUPERSEDED, {"file": name, "line": text})
            if later:
                os.truncate(self.folder / name, later[-1][0])

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("a+b") as file:
            # A line that a killed run left unfinished stays a line of its own.
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")

    def _lines(self, name: str) -> Iterator[str]:
        path = self.folder / name
        if path.is_file():
            # A power cut can leave bytes that are no text; they make a damaged line, not a file that can't be read.
            with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
                yield from file

    def _backwards(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield where each line begins, and the line, newest first."""
        path = self.folder / name
        if not path.is_file():
            return
        with path.open("rb") as file:
            at, rest = file.seek(0, os.SEEK_END), b""
            while at:
                size = min(_CHUNK, at)
                at -= size
                file.seek(at)
                rest = file.read(size) + rest
                while (cut := rest.rfind(b"\n", 0, -1)) >= 0:
                    yield at + cut + 1, rest[cut + 1 :]
                    rest = rest[: cut + 1]
            if rest:
                yield 0, rest

    def _parsed(self, name: str, kind: Any) -> Iterator[Any]:
        for number, line in enumerate(self._lines(name), 1):
            try:
                yield kind.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise WeightWatchError(
                    f"{self.folder / name}, line {number} is damaged ({error}). Move the line elsewhere to go on."
                ) from error


def _step(line: bytes) -> float:
    """Return the step of a line; a damaged one counts as after every step, so that it is set aside, not lost."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)
