"""How long a stage still takes, from the steps that it has done on this machine."""

import time
from collections.abc import Callable


class Pace:
    """The pace of the stages of a long command, measured from their calls of ``Progress``.

    The first call of a stage starts its clock, so what it does before, such as loading a model, does not count.

    Args:
        clock: Returns the time in seconds.

    Example:
        >>> from weightwatch.cli.pace import Pace
        >>> times = iter([0.0, 5.0])
        >>> pace = Pace(lambda: next(times))
        >>> pace.tell("answers", 100, 1000)  # an earlier run has drawn these
        >>> pace.tell("answers", 110, 1000)
        >>> pace.step("answers"), pace.left("answers")
        (0.5, 445.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun: dict[str, tuple[float, int]] = {}
        self._now: dict[str, tuple[float, int, int]] = {}

    def tell(self, stage: str, done: int, total: int) -> None:
        """Take note of a call of ``Progress``."""
        now = self._clock()
        self._begun.setdefault(stage, (now, done))
        self._now[stage] = (now, done, total)

    def spent(self, stage: str) -> float:
        """Return the seconds since the stage began."""
        return self._now[stage][0] - self._begun[stage][0]

    def step(self, stage: str) -> float | None:
        """Return the seconds that a step takes, in the mean; None before the first is done."""
        steps = self._now[stage][1] - self._begun[stage][1]
        return self.spent(stage) / steps if steps > 0 else None

    def left(self, stage: str) -> float | None:
        """Return the seconds that the stage still takes at this pace; None before the first step is done."""
        step, (_, done, total) = self.step(stage), self._now[stage]
        return None if step is None else step * (total - done)


def duration(seconds: float) -> str:
    """Return a time in words, to two digits at most.

    Example:
        >>> from weightwatch.cli.pace import duration
        >>> [duration(seconds) for seconds in (0.24, 8.3, 100, 5400, 40000)]
        ['0.24 s', '8.3 s', '100 s', '90 min', '11 h']
    """
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.2g} h"
