"""Following a run: its checkpoints as they become complete, while another process writes them."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from weightwatch.scan.checkpoints import SavedCheckpoint, run
from weightwatch.vectors.weights.peft_adapter import pickled

_logger = logging.getLogger("weightwatch")


class Arrivals:
    """Polls a run's folder for new checkpoints and returns each one once, when it is complete.

    A checkpoint is complete when every file has the length that its header states, and when it has not changed since
    the last look. A checkpoint of a Trainer needs one look: its ``trainer_state.json`` is written last.

    Args:
        folder: The run's folder, to which another process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: Mapping[Path, object] = {}
        self._returned: dict[Path, object] = {}

    def look(self) -> list[SavedCheckpoint]:
        """Return the checkpoints that became complete since the last look; one that was rewritten counts as new."""
        try:
            found = run(self._folder)
        except OSError:  # the folder or a checkpoint was deleted meanwhile
            return []
        now = {one.path: one.signature for one in found}
        ready = []
        for one in found:
            mark = now[one.path]
            settled = one.closed or self._before.get(one.path) == mark
            if one.pickled is not None and one.path not in self._returned:
                self._returned[one.path] = mark
                _logger.warning("weightwatch: %s is passed over: %s", one.path, pickled(one.pickled))
            if mark and settled and self._returned.get(one.path) != mark and one.incomplete() is None:
                self._returned[one.path] = mark
                ready.append(one)
        self._before = now
        return ready


def follow(
    folder: Path,
    *,
    poll: float,
    until_idle: float | None = None,
    stop_after: int | None = None,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[SavedCheckpoint]]:
    """Yield all complete checkpoints so far, by step, whenever a new one arrives.

    Args:
        folder: The run's folder, to which another process writes.
        poll: Seconds between two looks.
        until_idle: Stop after this many seconds without a new checkpoint. None: do not stop.
        stop_after: Stop after this many checkpoints.
        wait: Sleeps for a number of seconds.
        clock: Returns the time in seconds.
    """
    arrivals, here = Arrivals(folder), dict[Path, SavedCheckpoint]()
    last, count = clock(), 0
    while stop_after is None or count < stop_after:
        ready = arrivals.look()
        if ready:
            count += len(ready)
            here.update({one.path: one for one in ready})
            here = {path: one for path, one in here.items() if path.exists()}
            yield sorted(here.values(), key=lambda one: (one.step, one.name))
            last = clock()
            continue
        if until_idle is not None and clock() - last >= until_idle:
            return
        wait(poll)
