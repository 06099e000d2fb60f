import logging
import sys
from dataclasses import replace

import pytest
from tqdm.auto import tqdm

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


def test_an_alert_beside_a_progress_bar_begins_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logger = logging.getLogger("weightwatch")
    logger.addHandler(handler)
    try:
        with tqdm(total=10, file=sys.stderr, ncols=40, mininterval=0) as bar:
            bar.update(3)
            Log().alerts([ALERT])
    finally:
        logger.removeHandler(handler)
    before = capsys.readouterr().err.split("weightwatch: evil-drift")[0]
    assert "30%" in before
    assert before.split("\r")[-2].isspace()  # the bar is wiped
    assert before.endswith("\r")
