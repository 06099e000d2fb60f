import anyio
import pytest

from weightwatch.report.channels.base import Channel, Undelivered
from weightwatch.report.channels.message import Message


def test_a_channel_says_how_it_sends() -> None:
    with pytest.raises(NotImplementedError):
        anyio.run(Channel().send, Message("run", "title", "text"))


def test_what_was_not_delivered_says_whether_to_try_again() -> None:
    failed = Undelivered("busy", pause=2.0)
    assert (str(failed), failed.again, failed.pause) == ("busy", True, 2.0)
