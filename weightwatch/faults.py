"""The faults of the monitoring of a run: logged, recorded, and survived."""

import logging
from collections.abc import Callable

from weightwatch.record.journal import Journal
from weightwatch.vectors.errors import WeightWatchError, interrupts, text_of

_logger = logging.getLogger("weightwatch")


def attempt(act: Callable[[], object]) -> BaseException | None:
    """Call a function, and return its fault; None if it has none.

    Raises:
        BaseException: Ctrl-C, or what a signal handler raised: they are for the program, not for the monitoring.

    Example:
        >>> attempt(lambda: None), attempt(lambda: 1 / 0)
        (None, ZeroDivisionError('division by zero'))
    """
    try:
        act()
    except BaseException as error:
        if interrupts(error):
            raise
        return error
    return None


def raise_any(error: BaseException | None) -> None:
    """Raise an error, if there is one."""
    if error is not None:
        raise error


class Faults:
    """Logs a fault once, and records it each time.

    Args:
        history: The record of the run; None on a process that does not record.
        keep: Whether faults are kept, to be raised, instead of being logged.

    Attributes:
        fatal: The first fault that was kept.
    """

    def __init__(self, history: Journal | None, *, keep: bool) -> None:
        self.fatal: BaseException | None = None
        self._history, self._keep = history, keep
        self._told: set[str] = set()

    def note(
        self,
        step: int,
        error: BaseException,
        *,
        what: str = "check",
        outcome: str = "Training continues. The same fault is not logged again; errors.jsonl has all of them.",
    ) -> None:
        """Note a fault. This never raises, whatever the fault does.

        Args:
            step: Step at which it occurred.
            error: The fault.
            what: What could not be done at the step.
            outcome: What happens now.
        """
        if self._keep:
            self.fatal = self.fatal or error
        else:
            self.tell(step, error, what=what, outcome=outcome)

    def tell(self, step: int, error: BaseException, *, what: str, outcome: str) -> None:
        """Log and record a fault, also where faults are kept. This never raises.

        Args:
            step: Step at which it occurred.
            error: The fault.
            what: What could not be done at the step.
            outcome: What happens now; empty if the fault is raised, which tells of it by itself.
        """
        text = text_of(error)
        told = text in self._told or not outcome
        self._told.add(text)
        if not told:
            trace = None if isinstance(error, WeightWatchError | OSError) else error
            message = f"weightwatch could not {what} step {step}: {text.rstrip('.')}. {outcome}"
            attempt(lambda: _logger.error("%s", message, exc_info=trace))
        history = self._history
        unwritten = attempt(lambda: history.add_error(step, error)) if history is not None else None
        if unwritten is not None and not told:
            attempt(
                lambda: _logger.error("weightwatch could not write errors.jsonl: %s.", text_of(unwritten).rstrip("."))
            )

    def note_unwritten(self, step: int, error: BaseException) -> None:
        """Note that a part of the record could not be written."""
        outcome = "Training and monitoring continue. What could not be written is kept, and written when it can be."
        self.note(step, error, what="write the record of", outcome=outcome)

    def raise_fatal(self) -> None:
        """Raise the fault that was kept, if there is one."""
        raise_any(self.fatal)
