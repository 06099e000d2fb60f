from pathlib import Path

from tests.rules.test_alert import ALERT
from tests.support.runs import reading
from weightwatch.record.history import History
from weightwatch.report.recorder import Recorder


def test_a_reading_and_its_alerts_are_appended_to_the_history(tmp_path: Path) -> None:
    history = History(tmp_path)
    recorder = Recorder(history)
    recorder.check(reading(1, 0.1), [], {})
    recorder.check(reading(2, 0.2), [ALERT], {"evil-drift": True})
    assert list(history.readings()) == [reading(1, 0.1), reading(2, 0.2)]
    assert history.alerts() == [ALERT]


def test_alerts_of_a_resume_are_appended_without_a_reading(tmp_path: Path) -> None:
    history = History(tmp_path)
    Recorder(history).alerts([ALERT])
    assert (list(history.readings()), history.alerts()) == ([], [ALERT])
