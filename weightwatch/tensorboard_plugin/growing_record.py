"""The record of a run, read as it grows."""

import os
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from pathlib import Path
from time import monotonic, time
from typing import BinaryIO, TypeVar

from pydantic_core import from_json

from weightwatch.config import Config
from weightwatch.record.history import ALERTS, READINGS
from weightwatch.report.charts import MOST
from weightwatch.rules.alert import Alert
from weightwatch.setup import SETUP, Setup
from weightwatch.tensorboard_plugin.columns import Columns
from weightwatch.tensorboard_plugin.log_dirs import LogDirs
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import sentence

LARGE = 32 << 20
"""Bytes of readings from which on a sample is shown until all of them are read."""
_SETTINGS = "config.yaml"
_NAMED = 10  # damaged lines that are named

_versions = count(int(time() * 1000))  # of all records, also of those of a TensorBoard that was stopped

T = TypeVar("T")


class GrowingRecord:
    """The record of a run, of which only what is new is read.

    Lines that are damaged are left out and named. A reading that is of another version shows what it has.

    Args:
        folder: The folder of the record.
        log_dirs: No file outside of them is read, whatever links there are.

    Attributes:
        folder: See above.
        columns: The figures of all checks that are read so far, or of a sample.
        sampled: Whether they are of a sample.
        share: Share of the readings that is read, 0 to 1.
        version: Another one with each change of ``columns``.
    """

    def __init__(self, folder: Path, log_dirs: LogDirs) -> None:
        self.folder = folder
        self._log_dirs = log_dirs
        self._forget(0)

    @property
    def changed(self) -> float:
        """When the readings changed last, in seconds since the epoch; 0 without readings."""
        try:
            return (self.folder / READINGS).stat().st_mtime
        except OSError:
            return 0.0

    @property
    def notes(self) -> list[str]:
        """What could not be read, in sentences."""
        notes = [f"{READINGS}, line {number} is left out ({why})." for number, why in self._damaged.items()]
        more = len(notes) - _NAMED
        return notes[:_NAMED] + ([f"{more} more lines are left out."] if more > 0 else [])

    def update(self, seconds: float, pause: Callable[[], object] = lambda: None) -> bool:
        """Read what is new.

        Args:
            seconds: How long to read at most, about.
            pause: Called before each line.

        Returns:
            Whether all is read.
        """
        if not self._log_dirs.hold(self.folder / READINGS):
            self.share = 1.0  # there is nothing to read yet
            return True
        with (self.folder / READINGS).open("rb") as file:
            status = os.fstat(file.fileno())
            file.seek(self._at)
            if status.st_ino != self._inode or not self._same(file.readline()):
                self._forget(status.st_ino)
            if not self._line and (sample := _sample(file, status.st_size, pause)) is not None:
                self.columns, self.sampled = sample, True
                self.version = next(_versions)
            file.seek(self._at)
            whole = self._read(file, max(status.st_size, 1), monotonic() + seconds, pause)
        if whole and self.sampled:
            self.columns, self.sampled = self._all, False
            self.version = next(_versions)
        return whole

    def alerts(self) -> list[Alert]:
        """Return the alerts, oldest first, without lines that are damaged or of another version."""
        return self._content(ALERTS, _alerts) or []

    def config(self) -> Config | None:
        """Return the settings; None if there are none that this version can read."""
        return self._content(_SETTINGS, _config)

    def controls(self) -> list[str]:
        """Return the names of the controls."""
        return self._content(SETUP, _controls) or []

    def _forget(self, inode: int) -> None:
        self.columns = self._all = Columns()
        self.sampled, self.share = False, 0.0
        self.version = next(_versions)
        self._inode: int = inode
        # the last line: where it begins, its number and content
        self._at: int = 0
        self._number: int = 1
        self._line: bytes = b""
        self._damaged: dict[int, str] = {}

    def _same(self, line: bytes) -> bool:
        """Whether a line is of the same check as the last line that was read. A fuller one may have replaced that."""
        if not self._line or line == self._line:
            return True
        try:
            now, before = from_json(line), from_json(self._line)
            return bool(now["step"] == before["step"] and now["time"] == before["time"])
        except (ValueError, TypeError, KeyError):
            return False

    def _read(self, file: BinaryIO, size: int, end: float, pause: Callable[[], object]) -> bool:
        at = self._at
        for number, line in enumerate(file, self._number):
            pause()
            if not line.endswith(b"\n"):
                break  # a run that goes on may be writing it
            if line != self._line:
                try:
                    self._all.put(from_json(line, cache_strings="keys"))
                except ValueError as error:
                    self._damaged[number] = sentence(error)
                else:
                    self._at, self._number, self._line = at, number, line
                    if not self.sampled:
                        self.version = next(_versions)
            at += len(line)
            self.share = min(at / size, 1.0)
            if monotonic() > end:
                return False
        self.share = 1.0
        return True

    def _content(self, name: str, read: Callable[[Path, int, int], T]) -> T | None:
        """Return the content of a file of the record, which is read again when it has changed."""
        path = self.folder / name
        if not self._log_dirs.hold(path):
            return None
        status = path.stat()
        return read(path, status.st_mtime_ns, status.st_size)


def _sample(file: BinaryIO, size: int, pause: Callable[[], object]) -> Columns | None:
    """Return checks at even distances in a file; None if reading all of it takes about as long."""
    file.seek(0)
    if size < LARGE or len(file.readline()) * 4 * MOST > size:
        return None
    columns = Columns()
    for place in range(MOST):
        pause()
        file.seek(place * size // MOST)
        if place:
            file.readline()  # the rest of a line
        try:
            columns.put(from_json(file.readline(), cache_strings="keys"))
        except ValueError:
            continue  # damaged; it is named when all is read
    return columns


@lru_cache(maxsize=256)
def _alerts(path: Path, changed: int, size: int) -> list[Alert]:
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(Alert.from_json(line))
        except ValueError:
            continue
    return found


@lru_cache(maxsize=256)
def _config(path: Path, changed: int, size: int) -> Config | None:
    try:
        return Config.load(path)
    except WeightWatchError:
        return None


@lru_cache(maxsize=256)
def _controls(path: Path, changed: int, size: int) -> list[str]:
    setup = Setup.read(path.parent)
    return sorted(setup.controls) if setup is not None else []
