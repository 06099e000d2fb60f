"""The runs in the log dirs, read by a thread of their own."""

import logging
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

from weightwatch.tensorboard_plugin.growing_record import GrowingRecord
from weightwatch.tensorboard_plugin.log_dirs import Found, LogDirs

SHOWN = 3
"""Runs that the page shows at first, the newest ones. They are read at once, others when they are asked for."""
_TURN = 1.0  # seconds for which one run is read, before it is another's turn
_QUIET = 0.3  # seconds without a request after which reading goes on
_PATIENCE, _WORK = 1.0, 0.5  # seconds that it waits for that at most, and that it then goes on at least

_logger = logging.getLogger("weightwatch")


class Library:
    """The runs in the log dirs. A thread searches and reads them once, and again after each ``refresh``.

    Args:
        log_dirs: The log dirs.

    Attributes:
        log_dirs: See above.
        found: What was found at the last search.
        runs: The record of each run that was found, by name.
        searched: Set when the first search is done.
    """

    def __init__(self, log_dirs: LogDirs) -> None:
        self.log_dirs = log_dirs
        self.found = Found()
        self.runs: dict[str, GrowingRecord] = {}
        self.searched = Event()
        self._wanted: set[str] = set()
        self._asked = Event()
        self._served = self._resumed = 0.0  # when the last request came, and when reading went on after one

    def start(self) -> None:
        """Start the thread."""
        self._asked.set()
        Thread(target=self._work, name="weightwatch-tab", daemon=True).start()

    def refresh(self) -> None:
        """Ask for what is new. The call does not wait for it."""
        self._asked.set()

    def serve(self) -> None:
        """Say that a request is answered now: reading, which takes all of Python's time, makes way for it."""
        self._served = monotonic()

    def run(self, name: str) -> GrowingRecord | None:
        """Return the record of a run, and have it read from now on; None if there is no such run."""
        if (run := self.runs.get(name)) is not None and name not in self._wanted:
            self._wanted.add(name)
            self.refresh()
        return run

    def newest(self) -> list[str]:
        """Return the names of the runs that the page shows at first: those whose readings changed last."""
        return sorted(self.runs, key=lambda name: -self.runs[name].changed)[:SHOWN]

    def update(self) -> None:
        """Search the log dirs and read what is new in the runs that are wanted."""
        self.found = self.log_dirs.search()
        self.runs = {
            name: known if (known := self.runs.get(name)) is not None and known.folder == folder else self._new(folder)
            for name, folder in self.found.records.items()
        }
        if not self.searched.is_set():
            self._wanted.update(self.newest())
            self.searched.set()
        unread = sorted(self._wanted & self.runs.keys())
        while unread:
            unread = [name for name in unread if not self._read(name)]

    def _new(self, folder: Path) -> GrowingRecord:
        return GrowingRecord(folder, self.log_dirs)

    def _read(self, name: str) -> bool:
        try:
            return self.runs[name].update(_TURN, self._make_way)
        except OSError as error:
            _logger.warning("weightwatch: the record in %s can't be read: %s", self.runs[name].folder, error)
            return True

    def _make_way(self) -> None:
        begin = now = monotonic()
        while now < self._served + _QUIET and self._resumed + _WORK < begin > now - _PATIENCE:
            sleep(0.02)
            now = monotonic()
        if now > begin:
            self._resumed = now

    def _work(self) -> None:
        while self._asked.wait():
            self._asked.clear()
            try:
                self.update()
            except Exception:  # the tab goes on with what it has
                _logger.exception("weightwatch: the runs could not be read")
                self.searched.set()
