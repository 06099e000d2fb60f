"""Reporters: what shows or records a run. The session calls each of them, and guards each call singly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightwatch.config import Config
from weightwatch.reading.reading import Reading
from weightwatch.rules.alert import Alert
from weightwatch.vectors.direction import Direction


@dataclass(frozen=True)
class Run:
    """What a reporter is told of a run when it begins."""

    directions: Sequence[Direction]
    """What is watched, controls included."""
    config: Config
    """The settings, as resolved."""
    step: int
    """0 for a new run, else the step that it is resumed from: what was shown of later steps is void."""


@dataclass(frozen=True)
class Outcome:
    """What a reporter is told of a run when it ends."""

    last: Reading
    """The newest reading."""
    peaks: Mapping[str, tuple[float, int]]
    """For each direction its largest reach cosine, and the step of that."""
    alerts: Sequence[Alert]
    """All alerts, oldest first."""


class Reporter:
    """Shows or records a run. Every method does nothing unless a subclass says otherwise.

    A method may raise: the fault is logged once and recorded, other reporters are called all the same, and the training
    goes on. Under ``on_error: raise`` the fault is raised once all reporters have been called.
    """

    def begin(self, run: Run) -> None:
        """Open files. A reporter that raises here is not called again."""

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Take a reading.

        Args:
            reading: Of this check.
            raised: The alerts that began to fire or were resolved.
            firing: Whether each rule fires now, by its name.
        """

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Take alerts that a resumed run raises on its history, because its rules have changed."""

    def end(self, outcome: Outcome) -> None:
        """Close files."""
