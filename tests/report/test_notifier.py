"""Sessions and trainings that have channels: real receivers, dead ones, resumes."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.models import lora, low_rank, tiny_llama
from tests.support.receivers import TOKEN, Hook, hangs, hook
from tests.support.runs import At, lines, steps, trainer
from tests.test_session import DRIFT, checked, session, toward
from weightwatch import WeightWatchCallback, WeightWatchError
from weightwatch.report import notifier
from weightwatch.rules.alert import Alert
from weightwatch.session import Session
from weightwatch.update.sharding.ranks import Ranks

CHANNEL = {"notify": [{"webhook": "HOOK"}]}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hook() as served:
        monkeypatch.setenv("HOOK", served.url)
        yield served


def got(from_hook: Hook) -> list[tuple[str, str, int]]:
    return [(body["alert"], body["state"], body["step"]) for body in from_hook.bodies]


def ended(watched: Session, step: int) -> None:
    watched.end(step)
    watched.release()


def test_an_alert_is_sent_when_it_fires_and_when_it_is_resolved(made: Hook, tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, **CHANNEL)
    watched.begin(model, 0)
    checked(watched, model, 10, 1.0)
    checked(watched, model, 20, -1.0)
    ended(watched, 20)
    assert got(made) == [("drift", "firing", 10), ("drift", "resolved", 20)]
    assert made.bodies[0]["run"] == tmp_path.name
    notes = lines(tmp_path, "notifications.jsonl")
    assert [(note["step"], note["channel"], note["sent"], note["attempts"]) for note in notes] == [
        (10, "webhook HOOK", True, 1),
        (20, "webhook HOOK", True, 1),
    ]


def test_alerts_below_the_severity_of_a_channel_are_not_sent(made: Hook, tmp_path: Path) -> None:
    model = lora(tiny_llama())
    watched = session(tmp_path, notify=[{"webhook": "HOOK", "severity": "critical"}])
    watched.begin(model, 0)
    checked(watched, model, 10, 1.0)
    ended(watched, 10)
    assert got(made) == []


def test_a_resumed_run_sends_nothing_twice(made: Hook, tmp_path: Path) -> None:
    model, watched = lora(tiny_llama()), session(tmp_path, **CHANNEL)
    watched.begin(model, 0)
    checked(watched, model, 10, -1.0, "checkpoint-10")
    checked(watched, model, 20, 1.0, "checkpoint-20")
    checked(watched, model, 30, 1.0)
    ended(watched, 30)
    for step in (20, 10):  # after the alert, and before it
        again = session(tmp_path, **CHANNEL)
        toward(model, 1.0 if step == 20 else -1.0)
        again.begin(model, step, checkpoint=f"checkpoint-{step}", run=watched.run)
        checked(again, model, step + 10, 1.0)
        ended(again, step + 10)
    assert got(made) == [("drift", "firing", 20)]


def test_an_alert_that_fires_and_was_not_sent_is_sent_when_the_run_is_resumed(
    made: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.answers = [404]
    model, watched = lora(tiny_llama()), session(tmp_path, **CHANNEL)
    watched.begin(model, 0)
    checked(watched, model, 10, 1.0, "checkpoint-10")
    ended(watched, 10)
    assert [note["sent"] for note in lines(tmp_path, "notifications.jsonl")] == [False]
    again = session(tmp_path, **CHANNEL)
    again.begin(model, 10, checkpoint="checkpoint-10", run=watched.run)
    ended(again, 10)
    assert got(made) == [("drift", "firing", 10)] * 2
    assert [note["sent"] for note in lines(tmp_path, "notifications.jsonl")] == [False, True]


def test_the_failure_of_a_guard_is_sent(made: Hook, tmp_path: Path) -> None:
    watched = session(tmp_path, **CHANNEL)
    watched.begin(lora(tiny_llama()), 0)
    watched._guard_failed(5, None, Alert.of_guard("evil", 5, "the guard failed: x."), stops=True)
    assert got(made) == [("guard-failed", "firing", 5)]


def test_only_the_main_process_opens_channels(made: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "main", property(lambda ranks: False))
    monkeypatch.delenv("HOOK")  # which only the main process needs to have
    model, watched = lora(tiny_llama()), session(tmp_path, **CHANNEL)
    watched.begin(model, 0)
    checked(watched, model, 10, 1.0)
    ended(watched, 10)
    assert len(watched.alerts) == 1
    assert got(made) == []


def test_a_variable_that_is_not_set_ends_the_run_before_it_moves_any_record(
    made: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_before = session(tmp_path)
    ended_before.begin(lora(tiny_llama()), 0)
    ended(ended_before, 0)
    monkeypatch.delenv("HOOK")
    with pytest.raises(WeightWatchError, match="the environment variable HOOK is not set"):
        session(tmp_path, **CHANNEL).begin(lora(tiny_llama()), 0)
    assert [path.name for path in tmp_path.glob("weightwatch*")] == ["weightwatch"]


def trained(folder: Path, **settings: Any) -> WeightWatchCallback:
    """Train eight steps, in the fifth of which an alert fires."""
    evil = low_rank(tiny_llama(), 5)
    rule = {**DRIFT, "metric": "dose", "above": 0.02}
    callback = WeightWatchCallback([evil], config={"every": 1, "rules": [rule], "summary": False, **settings})
    there = At(5, lambda model: toward(model, 1.0))
    trainer(lora(tiny_llama()), folder, there, callback, max_steps=8).train()
    return callback


def test_a_dead_channel_neither_stops_nor_slows_a_training_and_what_it_did_not_send_is_recorded(
    made: Hook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The channel does not answer before the training has ended: if a step waited for it, none would come after."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(notifier, "_PATIENCE", 0.2)
    made.act = hangs
    trained(tmp_path, notify=[{"webhook": "HOOK", "timeout": 300}])
    assert steps(tmp_path) == list(range(9))
    (note,) = [each for each in lines(tmp_path, "notifications.jsonl") if each["state"] == "firing"]
    assert (note["step"], note["sent"], note["attempts"]) == (5, False, 1)
    assert "the run has ended before it was sent" in note["error"]
    assert caplog.text.count("an alert could not be sent (webhook HOOK)") == 1
    shown = caplog.text + "".join(
        file.read_text(errors="replace") for file in (tmp_path / "weightwatch").iterdir() if file.is_file()
    )
    assert not any(part in shown for part in TOKEN.split("/"))


def test_a_channel_that_is_busy_gets_the_alert_a_little_later(made: Hook, tmp_path: Path) -> None:
    made.answers = [500, 503]
    trained(tmp_path, **CHANNEL)
    assert got(made)[:3] == [("drift", "firing", 5)] * 3
    assert lines(tmp_path, "notifications.jsonl")[0]["attempts"] == 3


def test_without_channels_there_is_no_thread(tmp_path: Path) -> None:
    watched, before = session(tmp_path), set(threading.enumerate())
    watched.begin(lora(tiny_llama()), 0)
    assert "weightwatch-notify" not in {thread.name for thread in set(threading.enumerate()) - before}
    ended(watched, 0)
