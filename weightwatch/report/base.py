"""Reporters: what shows or records a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from weightwatch.config import Config
from weightwatch.reading.reading import Reading
from weightwatch.record.run_state import Peaks
from weightwatch.rules.alert import Alert
from weightwatch.vectors.direction import Direction


@dataclass(frozen=True)
class Run:
    """Information for reporters at the start of a run."""

    directions: Sequence[Direction]
    """The watched directions, controls included."""
    config: Config
    """The settings, as resolved."""
    step: int
    """0 for a new run, else the step that it is resumed from: discard what was shown for later steps."""


@dataclass(frozen=True)
class Outcome:
    """Information for reporters at the end of a run."""

    last: Reading
    """The newest reading; with a guard of ``mode: checkpoint``, one of the model as the guard leaves it."""
    peaks: Peaks
    """The largest reach cosine of each direction, and its step."""
    alerts: Sequence[Alert]
    """All alerts, oldest first."""
    taken: Mapping[str, float] = field(default_factory=dict)
    """The dose that the guard has taken back, of each direction it keeps out."""


class Reporter:
    """Shows or records a run. All methods are no-ops by default.

    A method may raise: the fault is logged and recorded, the other reporters are still called, and training continues.
    With ``on_error: raise`` the fault is raised after all reporters have been called.

    Example:
        >>> class Printer(Reporter):
        ...     def check(self, reading, raised, firing):
        ...         print(reading.step, len(raised))
        >>> Printer().check(Reading(40, "", 1.3, {}), [], {})
        40 0
    """

    def begin(self, run: Run) -> None:
        """Open files. A reporter that raises here is not called again."""

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Report a check.

        Args:
            reading: The reading.
            raised: The alerts that began to fire or were resolved.
            firing: Whether each rule fires now, by its name.
        """

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Report alerts that a resumed run raises on its history because its rules have changed."""

    def end(self, outcome: Outcome) -> None:
        """Close files."""
