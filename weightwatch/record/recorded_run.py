"""What the record of a run says of it, without its model: for a run that has ended, or that still goes on."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from weightwatch.config import Config
from weightwatch.reading.reading import Reading
from weightwatch.record.history import READINGS, History
from weightwatch.record.run_state import Peaks, RunState
from weightwatch.rules.alert import Alert
from weightwatch.setup import Setup
from weightwatch.vectors.errors import WeightWatchError


@dataclass(frozen=True)
class RecordedRun:
    """The record of a run.

    Attributes:
        record: Its folder.
        checks: Number of readings.
        last: The newest reading.
        peaks: The largest reach cosine of each direction, and its step.
        taken: The dose that a guard has taken back, of each direction.
        alerts: All alerts, oldest first.
        config: The settings; None if they can't be read by this version.
        setup: How the run is trained and watched; None if that was not recorded.
        live: Whether a process records it now.
    """

    record: Path
    checks: int
    last: Reading
    peaks: Peaks
    taken: dict[str, float]
    alerts: list[Alert]
    config: Config | None
    setup: Setup | None
    live: bool

    @classmethod
    def of(cls, folder: Path) -> "RecordedRun":
        """Read the record of a run.

        Args:
            folder: The run's output folder, or the folder ``weightwatch`` in it.

        Raises:
            WeightWatchError: There is no reading, or a line is damaged.
        """
        record = record_of(folder)
        if record is None:
            raise WeightWatchError(f"{folder} has no {READINGS}, neither itself nor in a folder weightwatch.")
        history = History(record)
        state, checks = RunState([], [], history), 0
        for reading in islice(history.readings(), whole_lines(record / READINGS)):
            state.take(reading)
            checks += 1
        if state.last is None:
            raise WeightWatchError(f"{record} has no reading yet. A run has its first one before its first step.")
        return cls(
            record,
            checks,
            state.last,
            state.peaks,
            state.taken,
            history.alerts(),
            _config(record),
            Setup.read(record),
            is_live(record),
        )

    @property
    def title(self) -> str:
        """The name of the run: that of its output folder."""
        named = self.record.parent if self.record.name.startswith("weightwatch") else self.record
        return named.resolve().name

    def readings(self) -> list[Reading]:
        """Return all readings after step 0, oldest first."""
        found = islice(History(self.record).readings(), self.checks)
        return [reading for reading in found if reading.step]

    @property
    def firing(self) -> list[str]:
        """Names of the rules that fire now."""
        newest = {alert.alert: alert.state for alert in self.alerts}
        return [name for name, state in newest.items() if state == "firing"]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document."""
        return {
            "record": str(self.record),
            "live": self.live,
            "checks": self.checks,
            "firing": self.firing,
            "last": self.last.to_json(),
            "peaks": {name: {"reach_cosine": peak, "step": step} for name, (peak, step) in self.peaks.items()},
            "taken": self.taken,
            "alerts": [alert.to_json() for alert in self.alerts],
            "setup": self.setup.model_dump() if self.setup is not None else None,
        }


def record_of(folder: Path) -> Path | None:
    """Return the folder with the record of a run; None if there is none.

    Args:
        folder: The run's output folder, or the folder ``weightwatch`` in it.
    """
    inner = folder / "weightwatch"
    return next((place for place in (inner, folder) if (place / READINGS).is_file()), None)


def whole_lines(file: Path) -> int:
    """Return the number of lines that are finished: a run that goes on may be writing the last one."""
    with file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def _config(record: Path) -> Config | None:
    try:
        return Config.load(record / "config.yaml")
    except WeightWatchError:
        return None


def is_live(record: Path) -> bool:
    """Whether a process records a run now."""
    lock = FileLock(record.parent / f".{record.name}.lock", timeout=0)
    if not Path(lock.lock_file).is_file():
        return False
    try:
        with lock:
            return False
    except (Timeout, OSError, NotImplementedError):
        return True
