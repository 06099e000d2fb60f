import pytest

from tests.support.receivers import hook
from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.trial import tried


def test_each_channel_says_whether_a_test_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hook() as good, hook(500) as bad:
        monkeypatch.setenv("GOOD", good.url)
        monkeypatch.setenv("BAD", bad.url)
        found = tried([ChannelSettings(webhook="BAD"), ChannelSettings(webhook="GOOD", severity="critical")])
    assert found["webhook GOOD"] == Delivery(True, 1)
    assert (found["webhook BAD"].sent, found["webhook BAD"].attempts) == (False, 1)
    assert "This is a test" in good.bodies[0]["text"]
