"""A history that keeps in memory what can't be written, until it can be."""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weightwatch.reading.reading import Reading
from weightwatch.record.history import READINGS, STATES, History

_MOST = 10_000
"""Lines of one file that are kept in memory."""

_logger = logging.getLogger("weightwatch")


class Journal(History):
    """A history that is written when it can be: no method that adds to it raises an ``OSError``.

    The files don't wait for one another. What waits is written, in order, at the next call.

    Args:
        folder: As for ``History``.

    Attributes:
        opening: What has to be done before the first line, in order. It may fail with an ``OSError``, and is then tried
            again.
        fault: Why something could not be written at the last call; None if all is written.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.opening: deque[Callable[[], None]] = deque()
        self.fault: OSError | None = None
        self._waiting: dict[str, deque[Mapping[str, Any] | Reading | None]] = {}

    @property
    def waiting(self) -> int:
        """Number of lines that wait to be written."""
        return sum(map(len, self._waiting.values()))

    def append(self, name: str, *lines: Mapping[str, Any]) -> None:
        """Append lines to a file of the record."""
        self._add(name, *lines)

    def amend(self, reading: Reading) -> None:
        """Write a fuller reading in the place of the last one, if that is of the same check."""
        queue = self._waiting.get(READINGS)
        last = queue[-1] if queue else None
        if queue and isinstance(last, Mapping) and last["step"] == reading.step:
            queue[-1] = reading.to_json()
            self.flush()
        else:
            self._add(READINGS, reading)

    def forget_states(self) -> None:
        """Remove the rules' states, because they no longer apply."""
        self._add(STATES, None)

    def flush(self) -> None:
        """Write what waits."""
        self.fault = None
        try:
            while self.opening:
                self.opening[0]()
                self.opening.popleft()
        except OSError as error:
            self.fault = error
            return
        for name, queue in self._waiting.items():
            try:
                while queue:
                    self._write_one(name, queue[0])
                    queue.popleft()
            except OSError as error:
                self.fault = self.fault or error

    def _add(self, name: str, *entries: Mapping[str, Any] | Reading | None) -> None:
        queue = self._waiting.setdefault(name, deque())
        queue.extend(entries)
        if len(queue) > _MOST:
            queue.popleft()
            _logger.error("weightwatch: %s can't be written for so long that its oldest lines are lost.", name)
        self.flush()

    def _write_one(self, name: str, entry: Mapping[str, Any] | Reading | None) -> None:
        if entry is None:
            super().forget_states()
        elif isinstance(entry, Reading):
            super().amend(entry)
        else:
            super().append(name, entry)
