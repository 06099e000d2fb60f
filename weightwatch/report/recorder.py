"""The reporter that appends readings and alerts to the history."""

from collections.abc import Mapping, Sequence

from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.report.base import Reporter
from weightwatch.rules.alert import Alert


class Recorder(Reporter):
    """Appends readings and alerts to the history of a run.

    Args:
        history: The record.
    """

    def __init__(self, history: History) -> None:
        self._history = history

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Write a reading and its alerts."""
        self._history.add_reading(reading)
        self.alerts(raised)

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Write alerts."""
        for alert in raised:
            self._history.add_alert(alert)
