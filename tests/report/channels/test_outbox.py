from collections.abc import Callable
from dataclasses import replace

import anyio

from tests.support.receivers import an_alert
from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.outbox import Outbox

ALERTS = [Message.of(an_alert("drift", step), "run") for step in range(1, 6)]


class Kept(Channel):
    """Keeps what it is given, or never ends."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.got: list[Message] = []
        self._hangs = hangs

    async def send(self, message: Message) -> None:
        self.got.append(message)
        if self._hangs:
            await anyio.sleep_forever()


def ran(channel: Channel, act: Callable[[Outbox], None], per_hour: int = 20) -> list[tuple[Message, Delivery]]:
    """Run an outbox, and return what became of its messages."""
    settled: list[tuple[Message, Delivery]] = []
    settings = ChannelSettings(webhook="HOOK", per_hour=per_hour)

    async def main() -> None:
        outbox = Outbox(settings, channel, lambda _, message, delivery: settled.append((message, replace(delivery))))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.run)
            await anyio.wait_all_tasks_blocked()
            act(outbox)
            await anyio.wait_all_tasks_blocked()
            outbox.close()
            await anyio.wait_all_tasks_blocked()
            outbox.expire()

    anyio.run(main)
    return settled


def put_all(outbox: Outbox) -> None:
    for message in ALERTS:
        outbox.put(message)


def test_messages_are_sent_in_order_and_each_is_settled() -> None:
    channel = Kept()
    settled = ran(channel, put_all)
    assert channel.got == ALERTS
    assert settled == [(message, Delivery(True, 1)) for message in ALERTS]


def test_beyond_the_hourly_cap_they_are_summed_up_in_one_at_the_end() -> None:
    channel = Kept()
    settled = ran(channel, put_all, per_hour=2)
    assert channel.got == [*ALERTS[:2], Message.held_back(ALERTS[2:], 2)]
    assert settled == [(message, Delivery(True, 1)) for message in ALERTS]


def test_what_an_expired_outbox_has_left_is_settled_as_not_sent() -> None:
    channel = Kept(hangs=True)
    settled = ran(channel, put_all)
    assert [message for message, _ in settled] == ALERTS
    assert [delivery.attempts for _, delivery in settled] == [1, 0, 0, 0, 0]
    assert all("the run has ended before it was sent" in str(delivery.error) for _, delivery in settled)


def test_too_many_messages_are_settled_at_once() -> None:
    def far_too_many(outbox: Outbox) -> None:
        for _ in range(201):
            put_all(outbox)

    settled = ran(Kept(hangs=True), far_too_many)
    assert len(settled) == 5 * 201
    assert settled[0][1] == Delivery(error="1000 messages wait already")


def test_a_closed_outbox_takes_no_more() -> None:
    def too_late(outbox: Outbox) -> None:
        outbox.close()
        put_all(outbox)

    settled = ran(Kept(), too_late)
    assert [delivery.error for _, delivery in settled] == ["the run has ended"] * 5
