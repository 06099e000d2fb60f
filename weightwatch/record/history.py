"""The record of a run: readings, alerts and faults as JSON lines in ``<output_dir>/weightwatch/``.

The files survive a crash, and a resumed run continues them. Lines are appended. The line of the last reading is
completed in place when its checkpoint has been written. Lines that a resumed or repeated run supersedes, and those
that a crash left unfinished, are moved to ``superseded.jsonl``. The cost of a check and of a save does not grow with
the run.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from weightwatch.reading.reading import Reading
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import RuleState
from weightwatch.vectors.errors import WeightWatchError, text_of
from weightwatch.vectors.weights.atomic import whole_file

READINGS, ALERTS, ERRORS, SUPERSEDED = "readings.jsonl", "alerts.jsonl", "errors.jsonl", "superseded.jsonl"
STATES = "states.jsonl"
"""The rules' states at each checkpoint. They follow from the readings and spare a resumed run the reading of them."""


class State(BaseModel, extra="forbid", strict=True, allow_inf_nan=False):
    """The state of a run at a checkpoint.

    Attributes:
        step: Step of the checkpoint.
        checkpoint: Its name.
        key: Tells for which rules and directions it is.
        states: State of each rule.
        clean: Names of the rules for which the checkpoint is clean.
        peaks: The largest reach cosine of each direction, and its step.
        taken: The dose that the guard has taken back, of each direction.
    """

    step: int
    checkpoint: str
    key: str
    states: dict[str, RuleState]
    clean: list[str]
    peaks: dict[str, tuple[float, int]]
    taken: dict[str, float] = Field(default_factory=dict)


_CHUNK = 1 << 16  # bytes that are read at a time from the end of a file


class History:
    """The record in one folder.

    Args:
        folder: Made at the first line that is written.

    Attributes:
        folder: See above.
        end: Lines of later steps are not read. They are those that ``rewind`` could not set aside yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.end = float("inf")

    def readings(self) -> Iterator[Reading]:
        """Yield all readings, oldest first.

        Raises:
            WeightWatchError: A line is damaged, or its step is not after that of the line before; the message names
                the file and the line.
        """
        before = -1
        for number, line in enumerate(self._lines(READINGS), 1):
            reading = self._parsed(READINGS, Reading, line, f"line {number}")
            if reading.step <= before:
                raise self._damaged(READINGS, f"line {number}", f"step {reading.step} comes after step {before}")
            if reading.step > self.end:
                return
            before = reading.step
            yield reading

    def alerts(self) -> list[Alert]:
        """Return all alerts, oldest first.

        Raises:
            WeightWatchError: A line is damaged or repeated; the message names the file and the line.
        """
        found: dict[tuple[str, int, str], Alert] = {}
        for number, line in enumerate(self._lines(ALERTS), 1):
            alert = self._parsed(ALERTS, Alert, line, f"line {number}")
            if (alert.alert, alert.step, alert.state) in found:
                raise self._damaged(ALERTS, f"line {number}", "it repeats an earlier line")
            found[alert.alert, alert.step, alert.state] = alert
        return [alert for alert in found.values() if alert.step <= self.end]

    def last_reading(self) -> Reading | None:
        """Return the newest reading; None if there is none or its line is damaged."""
        line = next((line for _, line in self._backwards(READINGS) if not self.end < _step(line) < float("inf")), b"")
        try:
            return Reading.from_json(line)
        except ValueError:
            return None

    def has(self, step: int) -> bool:
        """Whether there is a reading of a step."""
        return next((found for _, line in self._backwards(READINGS) if (found := _step(line)) <= step), -1) == step

    def states(self) -> list[State]:
        """Return what ``add_state`` has noted, oldest first; nothing where a line is damaged."""
        try:
            states = [State.model_validate_json(line) for line in self._lines(STATES)]
        except ValueError:
            return []
        return [state for state in states if state.step <= self.end]

    def add_reading(self, reading: Reading) -> None:
        """Append a reading."""
        self.append(READINGS, reading.to_json())

    def amend(self, reading: Reading) -> None:
        """Write a fuller reading in the place of the last one, if that is of the same check."""
        self._set_unfinished_aside(READINGS)
        at, before = next(self._backwards(READINGS), (0, b""))
        if _step(before) != reading.step:
            self._write(READINGS, _line(reading.to_json()))
            return
        after = _line(reading.to_json())
        # Only the part that differs is written, in one go: a crash leaves the old line or the new one.
        same = next((i for i, (x, y) in enumerate(zip(before, after, strict=False)) if x != y), len(before))
        with (self.folder / READINGS).open("r+b") as file:
            file.seek(at + same)
            file.write(after[same:])
            file.truncate(at + len(after))

    def add_alert(self, alert: Alert) -> None:
        """Append an alert."""
        self.append(ALERTS, alert.to_json())

    def add_error(self, step: int, error: BaseException) -> None:
        """Append a fault of the monitoring itself."""
        self.append(ERRORS, {"step": step, "error": type(error).__name__, "message": text_of(error)})

    def add_state(self, state: State) -> None:
        """Append the rules' states at a checkpoint."""
        self.append(STATES, state.model_dump())

    def append(self, name: str, *lines: Mapping[str, Any]) -> None:
        """Append lines to a file of the record, and set aside a line that a crash left unfinished in it."""
        self._write(name, b"".join(map(_line, lines)))

    def _write(self, name: str, lines: bytes) -> None:
        """Append lines, all of them or, where the disk is full, none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._set_unfinished_aside(name)
        with (self.folder / name).open("ab", buffering=0) as file:
            at, left = file.seek(0, os.SEEK_END), memoryview(lines)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(at)
                raise

    def readings_after(self, step: int) -> list[Reading]:
        """Return the readings after a step, oldest first. Those before it are not read.

        Raises:
            WeightWatchError: A line is damaged.
        """
        later = takewhile(lambda found: _step(found[1]) > step, self._backwards(READINGS))
        return self._read(line for _, line in later)

    def newest(self, count: int) -> list[Reading]:
        """Return the newest readings, oldest first. Those before them are not read.

        Raises:
            WeightWatchError: A line is damaged.
        """
        return self._read(line for _, line in islice(self._backwards(READINGS), count))

    def _read(self, backwards: Iterable[bytes]) -> list[Reading]:
        """Return the readings in lines that come newest first."""
        lines = [line for line in backwards if not self.end < _step(line) < float("inf")]
        return [self._parsed(READINGS, Reading, line, "near its end") for line in reversed(lines)]

    def forget_states(self) -> None:
        """Remove the rules' states, because they no longer apply."""
        (self.folder / STATES).unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Prepare to continue from a step: set aside what was recorded after it.

        Args:
            step: The step of the checkpoint that training resumes from; negative for a run from the beginning.
        """
        for name in (READINGS, STATES):  # by rising step, and large: read from the end
            later = list(takewhile(lambda found: not _step(found[1]) <= step, self._backwards(name)))
            if later:
                self._supersede(name, [line for _, line in reversed(later)] if name != STATES else [])
                os.truncate(self.folder / name, later[-1][0])
        for name in (ALERTS, ERRORS):  # small, and what a resume adds is of an earlier step
            lines = [line for _, line in self._backwards(name)][::-1]
            kept = [line for line in lines if _step(line) <= step]
            if len(kept) < len(lines):
                self._supersede(name, [line for line in lines if not _step(line) <= step])
                with whole_file(self.folder / name) as draft:
                    draft.write_bytes(b"".join(kept))

    def set_alerts_aside(self) -> None:
        """Set all alerts aside, because other rules apply now."""
        self._supersede(ALERTS, [line for _, line in self._backwards(ALERTS)][::-1])
        (self.folder / ALERTS).unlink(missing_ok=True)

    def _supersede(self, name: str, lines: Sequence[bytes]) -> None:
        """Move lines to ``superseded.jsonl``; the caller removes them from their file."""
        texts = (line.decode("utf-8", errors="replace").removesuffix("\n") for line in lines)
        if lines:
            self._write(SUPERSEDED, b"".join(_line({"file": name, "line": text}) for text in texts))

    def _set_unfinished_aside(self, name: str) -> None:
        at, line = next(self._backwards(name), (0, b"\n"))
        if not line.endswith(b"\n"):
            os.truncate(self.folder / name, at)
            self._supersede(name, [line])

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

    def _parsed(self, name: str, kind: Any, line: str | bytes, where: str) -> Any:
        try:
            return kind.from_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            reason = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
            raise self._damaged(name, where, reason) from error

    def _damaged(self, name: str, where: str, reason: str) -> WeightWatchError:
        return WeightWatchError(
            f"{self.folder / name}, {where} is damaged ({reason}). Move the line elsewhere to go on."
        )


class _Numbered(BaseModel, allow_inf_nan=False):
    """What all lines have."""

    step: int


def _step(line: bytes) -> float:
    """Return the step of a line; a damaged one counts as after every step, so that it is moved, not lost."""
    try:
        return _Numbered.model_validate_json(line).step
    except ValueError:
        return float("inf")


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
