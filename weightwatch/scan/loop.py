"""The loop of a scan: which checkpoints it measures, and which it passes over."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeAlias

from weightwatch.reading.reading import Reading
from weightwatch.scan.checkpoints import SavedCheckpoint, find, locate
from weightwatch.scan.follow import follow
from weightwatch.scan.scanner import FOLDER, Scan
from weightwatch.vectors.errors import WeightWatchError

_logger = logging.getLogger("weightwatch")

Rounds: TypeAlias = Iterable[Iterable[SavedCheckpoint]]
"""Checkpoints by step, once for all of them, or again whenever a new one arrives."""


def present(what: str) -> tuple[Rounds, Path | None]:
    """Return the complete checkpoints at a path or Hub id, and the folder for the record of a scan.

    Args:
        what: A checkpoint, the folder of a run, or a Hub id.

    Returns:
        One round of checkpoints, and ``weightwatch-scan`` in the run's folder. The folder is None for a single
        checkpoint and for a Hub id: nothing is written to the Hub's cache.

    Raises:
        WeightWatchError: See ``locate`` and ``find``.
    """
    path = locate(what)
    found, is_run = find(path)
    return [_complete(found)], path / FOLDER if is_run and Path(what).exists() else None


def arriving(
    what: str, *, poll: float, until_idle: float | None = None, stop_after: int | None = None
) -> tuple[Rounds, Path]:
    """Return the checkpoints of a run that is being written, and the folder for the record of a scan.

    Args:
        what: The folder of the run.
        poll: See ``follow``.
        until_idle: See ``follow``.
        stop_after: See ``follow``.

    Raises:
        WeightWatchError: There is no such folder.
    """
    path = Path(what)
    if not path.is_dir():
        raise WeightWatchError(f"There is no folder {what} to follow. Start the training first, or create the folder.")
    return follow(path, poll=poll, until_idle=until_idle, stop_after=stop_after), path / FOLDER


class ScanLoop:
    """Measures the checkpoints of a run, and passes over those that can't be measured.

    Args:
        scan: Measures one checkpoint.
        measuring: Returns a context manager in which a checkpoint is measured, for instance a progress bar.

    Attributes:
        unmeasured: Names of checkpoints that could not be measured, each with the reason.
    """

    def __init__(
        self, scan: Scan, measuring: Callable[[SavedCheckpoint], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self.unmeasured: dict[str, str] = {}
        self._scan, self._measuring = scan, measuring
        self._failed: set[object] = set()

    def measure(self, rounds: Rounds) -> Iterator[Reading]:
        """Yield a reading for each checkpoint that the scan has not recorded yet.

        A failed checkpoint is tried again only after its files have changed.

        Raises:
            WeightWatchError: The first checkpoint can't be measured, so the cause likely concerns all of them.
        """
        try:
            for checkpoints in rounds:
                for one in checkpoints:
                    reading = self._add(one)
                    if reading is not None:
                        yield reading
        finally:
            self._scan.close()

    def _add(self, one: SavedCheckpoint) -> Reading | None:
        mark = one.path, one.signature
        if mark in self._failed:
            return None
        try:
            with self._measuring(one):
                reading = self._scan.add(one)
        except WeightWatchError as error:
            if not self._scan.readings:
                raise
            _logger.warning("weightwatch: %s is passed over: %s", one.path, error)
            self.unmeasured[one.name] = str(error)
            self._failed.add(mark)
            return None
        self.unmeasured.pop(one.name, None)
        return reading


def _complete(found: Sequence[SavedCheckpoint]) -> Iterator[SavedCheckpoint]:
    for one in found:
        reason = one.incomplete()
        if reason is None:
            yield one
        else:
            state = "can't be read" if one.pickled is not None else "is incomplete"
            _logger.warning("weightwatch: %s is passed over because it %s: %s.", one.path, state, reason)
