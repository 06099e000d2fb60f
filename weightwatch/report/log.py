"""Alerts in Python's log, under the logger ``weightwatch``."""

import logging
from collections.abc import Mapping, Sequence

from weightwatch.reading.reading import Reading
from weightwatch.report.base import Reporter
from weightwatch.report.console import above_bars
from weightwatch.rules.alert import Alert

_logger = logging.getLogger("weightwatch")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


class Log(Reporter):
    """Logs the alerts whose actions name ``log`` at the level of their severity, and at INFO that one is resolved."""

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Log the alerts of a check."""
        self.alerts(raised)

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Log alerts."""
        for alert in raised:
            if "log" in alert.actions or alert.state == "resolved":
                level = _LEVELS[alert.severity] if alert.state == "firing" else logging.INFO
                with above_bars():
                    _logger.log(level, "weightwatch: %s", alert.describe())
