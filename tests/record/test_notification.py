import json
from pathlib import Path

from tests.support.receivers import an_alert
from weightwatch.record.history import History
from weightwatch.record.notification import NOTIFICATIONS, Notification, key, notifications

SENT = Notification(40, "drift", "firing", "webhook HOOK", "2026-01-01T00:00:00.000+00:00", True, 1)


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    History(tmp_path).append(NOTIFICATIONS, SENT.to_json())
    assert list(notifications(tmp_path)) == [SENT]
    assert SENT.key == key("webhook HOOK", an_alert())


def test_damaged_lines_are_left_out_and_no_file_is_no_line(tmp_path: Path) -> None:
    assert list(notifications(tmp_path)) == []
    line = json.dumps(SENT.to_json()).encode()
    (tmp_path / NOTIFICATIONS).write_bytes(b"\xff\n{}\n" + line + b"\n" + line[:20])
    assert list(notifications(tmp_path)) == [SENT]


def test_no_resume_sets_what_was_sent_aside(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.append(NOTIFICATIONS, SENT.to_json())
    history.rewind(20)
    assert list(notifications(tmp_path)) == [SENT]
