"""A limit on the time that a fault may take: a hang is a failed test, not a stopped suite."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class HangError(BaseException):
    """It took longer than it may. No ``Exception``, so that nothing under test takes it for a fault of its own."""


@contextmanager
def within(seconds: float = 10.0) -> Iterator[None]:
    """Raise ``HangError`` if a block takes longer. Only in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HangError(f"still not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
