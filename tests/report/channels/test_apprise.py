import anyio
import pytest

from tests.support.receivers import TOKEN, floods, hangs, hook
from weightwatch.report.channels.apprise import Apprise
from weightwatch.report.channels.base import Undelivered
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.message import Message

MESSAGE = Message("run", "title", "text")


@pytest.fixture(autouse=True)
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def opened(url: str, monkeypatch: pytest.MonkeyPatch) -> Apprise:
    monkeypatch.setenv("URLS", url.replace("http://", "json://"))
    return Apprise("URLS")


def test_a_message_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    with hook() as made:
        anyio.run(opened(made.url, monkeypatch).send, MESSAGE)
    assert (made.bodies[0]["title"], made.bodies[0]["message"]) == ("weightwatch: run: title", "text")


@pytest.mark.parametrize("status", [500, 302])
def test_a_service_that_refuses_or_redirects_is_told(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with hook(status) as made:
        channel = opened(made.url, monkeypatch)
        with pytest.raises(Undelivered, match="exit status 1") as caught:
            anyio.run(channel.send, MESSAGE)
    assert len(made.paths) == 1
    assert TOKEN not in str(caught.value) + repr(vars(channel))


@pytest.mark.parametrize("act", [hangs, floods])
def test_a_service_that_hangs_or_floods_is_killed(act: object, monkeypatch: pytest.MonkeyPatch) -> None:
    delivery = Delivery()
    with hook(act=act) as made:  # type: ignore[arg-type]
        anyio.run(delivery.attempt_again, opened(made.url, monkeypatch), MESSAGE, 2.0, 1)
    assert not delivery.sent
