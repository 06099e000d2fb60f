import json
import logging
import tracemalloc
from typing import Any

import anyio
import pytest

from tests.support.receivers import TOKEN, Hook, an_alert, drips, floods, hangs, hook
from weightwatch import WeightWatchError
from weightwatch.channel import Body
from weightwatch.report.channels.base import Undelivered
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.webhook import Webhook

MESSAGE = Message.of(an_alert(), "fine-tune")


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def opened(to: Hook, monkeypatch: pytest.MonkeyPatch, shape: Body = "json") -> Webhook:
    monkeypatch.setenv("HOOK", to.url)
    return Webhook("HOOK", shape)


def failed(to: Hook, monkeypatch: pytest.MonkeyPatch) -> Undelivered:
    with pytest.raises(Undelivered) as caught:
        anyio.run(opened(to, monkeypatch).send, MESSAGE)
    assert not any(part in str(caught.value) for part in TOKEN.split("/"))
    return caught.value


@pytest.mark.parametrize("shape", ["json", "slack", "discord"])
def test_a_message_arrives_in_its_shape(shape: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    with hook() as made:
        anyio.run(opened(made, monkeypatch, shape).send, MESSAGE)
    assert made.bodies == [json.loads(json.dumps(MESSAGE.body(shape)))]
    assert made.paths == [f"/services/{TOKEN}"]


@pytest.mark.parametrize(("status", "again"), [(500, True), (503, True), (429, True), (404, False), (400, False)])
def test_a_refusal_says_why_and_whether_another_attempt_is_of_use(
    status: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hook(status) as made:
        error = failed(made, monkeypatch)
    assert (error.again, error.pause) == (again, 0.0)
    assert str(error).startswith(f"HTTP {status}: no such hook: ***")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with hook(status) as made:
        error = failed(made, monkeypatch)
    assert (str(error), error.again) == (f"HTTP {status}, a redirect, which is not followed", False)
    assert len(made.paths) == 1


def test_of_an_endless_answer_the_beginning_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with hook(act=floods) as made:
        tracemalloc.start()
        error = failed(made, monkeypatch)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert str(error).startswith("HTTP 400: xxx")
    assert peak < 20 << 20


@pytest.mark.parametrize("act", [hangs, drips])
def test_the_limit_is_on_the_whole_attempt(act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery()
    with hook(act=act) as made:
        channel = opened(made, monkeypatch)
        anyio.run(delivery.attempt_again, channel, MESSAGE, 0.3, 1)
    assert delivery == Delivery(sent=False, attempts=1, error="no answer within 0.3 s")


def test_a_server_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with hook() as made:
        pass
    assert failed(made, monkeypatch).again


@pytest.mark.parametrize("address", ["ftp://host/secret", "secret", "https://", "https://host:secret/"])
def test_what_is_no_address_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", address)
    with pytest.raises(WeightWatchError, match="HOOK has no address of a webhook") as caught:
        Webhook("HOOK", "json")
    assert "secret" not in str(caught.value)


def test_no_secret_is_in_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with hook() as made:
        channel = opened(made, monkeypatch)
        anyio.run(channel.send, MESSAGE)
    assert caplog.records  # the probe sees what the libraries say
    assert not any(part in caplog.text for part in TOKEN.split("/"))
    assert TOKEN not in repr(vars(channel))
