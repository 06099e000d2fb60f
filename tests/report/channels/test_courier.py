import threading

import anyio

from tests.report.channels.test_outbox import ALERTS, Kept
from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.courier import Courier
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.outbox import Outbox

Settled = list[tuple[str, Message, bool]]


class Slow(Channel):
    """Delivers when it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.thread: threading.Thread | None = None

    async def send(self, message: Message) -> None:
        self.thread = threading.current_thread()
        while not self.may.is_set():
            await anyio.sleep(0.005)


def courier(settled: Settled, **channels: Channel) -> Courier:
    def settle(settings: ChannelSettings, message: Message, delivery: Delivery) -> None:
        settled.append((str(settings.webhook), message, delivery.sent))

    made = Courier(lambda: [Outbox(ChannelSettings(webhook=name), each, settle) for name, each in channels.items()])
    made.start()
    return made


def test_messages_are_sent_on_another_thread_and_the_end_waits_for_them() -> None:
    settled: Settled = []
    slow = Slow()
    made = courier(settled, SLOW=slow)
    made.call(lambda outbox: outbox.put(ALERTS[0]))
    assert settled == []  # nobody has waited
    slow.may.set()
    assert made.close(30)
    assert settled == [("SLOW", ALERTS[0], True)]
    assert slow.thread not in (None, threading.current_thread())
    assert slow.thread.daemon


def test_a_dead_channel_keeps_no_other_from_sending_and_the_end_waiting_no_longer_than_it_may() -> None:
    settled: Settled = []
    made = courier(settled, DEAD=Kept(hangs=True), GOOD=Kept())
    made.call(lambda outbox: outbox.put(ALERTS[0]))
    assert made.close(0.2)
    assert sorted(settled, key=lambda each: each[0]) == [("DEAD", ALERTS[0], False), ("GOOD", ALERTS[0], True)]
    made.call(lambda outbox: outbox.put(ALERTS[1]))  # too late, and no error


def test_without_messages_the_end_does_not_wait() -> None:
    made = courier([], DEAD=Kept(hangs=True))
    assert made.close(30)
