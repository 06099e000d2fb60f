import logging
from dataclasses import replace

import pytest

from tests.rules.test_alert import ALERT
from tests.support.runs import reading
from weightwatch.report.log import Log


@pytest.mark.parametrize(
    ("severity", "level"), [("info", logging.INFO), ("warning", logging.WARNING), ("critical", logging.CRITICAL)]
)
def test_an_alert_is_logged_at_the_level_of_its_severity(
    severity: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="weightwatch")
    alert = replace(ALERT, severity=severity, actions=("log",))
    Log().check(reading(40, 0.4), [alert], {})
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(level, f"weightwatch: {alert.describe()}")]


@pytest.mark.parametrize(("state", "logged"), [("firing", 0), ("resolved", 1)])
def test_without_the_action_only_its_end_is_logged(state: str, logged: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="weightwatch")
    Log().alerts([replace(ALERT, state=state, severity="critical", actions=("stop",))])  # type: ignore[arg-type]
    assert [record.levelno for record in caplog.records] == [logging.INFO] * logged
