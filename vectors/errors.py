"""The errors that a user of weightwatch can cause, and what is known of all others."""

import signal
from traceback import walk_tb


class WeightWatchError(ValueError):
    """An error that a user can fix. The message says what is wrong, where, and what to do."""


def text_of(error: BaseException) -> str:
    """Return the text of an error; the name of its class if it has no text, or one that can't be made.

    Example:
        >>> text_of(ValueError("no room")), text_of(MemoryError())
        ('no room', 'MemoryError')
    """
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def interrupts(error: BaseException) -> bool:
    """Whether an error is a request to end the program: Ctrl-C, or raised by a signal handler.

    Any other error, also one that is no ``Exception`` (a library's ``SystemExit``, a panic in Rust), is a fault of what
    was called.

    Example:
        >>> interrupts(KeyboardInterrupt()), interrupts(SystemExit(3))
        (True, False)
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return any(frame.f_code in handlers for frame, _ in walk_tb(error.__traceback__))
