from pathlib import Path

import pytest
from filelock import FileLock

from tests.rules.test_engine import rule
from tests.support.references import record
from weightwatch import WeightWatchError
from weightwatch.record.history import ALERTS, History
from weightwatch.record.recorded_run import RecordedRun, record_of
from weightwatch.rules.manager import RuleManager


def test_the_record_of_a_run_gives_its_last_reading_its_peak_and_its_alerts(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1, 0.3, 0.2])
    history = History(home / "weightwatch")
    manager = RuleManager([rule(above=0.25)], lambda _: True)
    for reading in history.readings():
        for alert in manager.apply(reading):
            history.add_alert(alert)
    run = RecordedRun.of(home)
    assert (run.checks, run.last.step, run.peaks) == (4, 30, {"evil": (0.3, 20)})
    assert [(alert.step, alert.state) for alert in run.alerts] == [(20, "firing"), (30, "resolved")]
    assert run.firing == []
    (home / "weightwatch" / ALERTS).write_text((home / "weightwatch" / ALERTS).read_text().splitlines(True)[0])
    assert RecordedRun.of(home / "weightwatch").firing == ["drift"]
    assert run.setup is not None
    assert run.setup.rank == 16
    assert run.to_json()["peaks"] == {"evil": {"reach_cosine": 0.3, "step": 20}}


def test_a_line_that_is_being_written_is_left_out_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1, 0.3])
    file = home / "weightwatch" / "readings.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole.splitlines()[-1][:40])
    assert RecordedRun.of(home).checks == 3
    file.write_text(whole.replace("0.1", "NaN"))
    with pytest.raises(WeightWatchError, match="line 2 is damaged"):
        RecordedRun.of(home)


def test_a_run_is_live_while_a_process_has_its_lock(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1])
    assert not RecordedRun.of(home).live
    with FileLock(home / ".weightwatch.lock"):
        assert RecordedRun.of(home).live
    assert not RecordedRun.of(home).live


def test_settings_of_another_version_do_not_keep_the_rest_from_being_read(tmp_path: Path) -> None:
    home = record(tmp_path / "run", [0.1])
    (home / "weightwatch" / "config.yaml").write_text("from_the_future: 1")
    assert RecordedRun.of(home).config is None


def test_a_folder_without_readings_is_refused(tmp_path: Path) -> None:
    assert record_of(tmp_path) is None
    with pytest.raises(WeightWatchError, match=r"has no readings\.jsonl"):
        RecordedRun.of(tmp_path)
    (tmp_path / "weightwatch").mkdir()
    (tmp_path / "weightwatch" / "readings.jsonl").touch()
    with pytest.raises(WeightWatchError, match="has no reading yet"):
        RecordedRun.of(tmp_path)
