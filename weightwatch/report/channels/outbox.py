"""The messages that wait for one channel. They are sent one by one, and not too many in an hour."""

import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TypeAlias

import anyio

from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.allowance import Allowance
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.message import Message

Settle: TypeAlias = Callable[[ChannelSettings, Message, Delivery], None]
"""Called with what became of a message on a channel."""

_MOST = 1000  # messages that wait


class Outbox:
    """Sends the messages of one channel. All methods are called in one event loop.

    Args:
        settings: Settings of the channel.
        channel: The channel.
        settle: Called once for each message that was put in.

    Attributes:
        name: Name of the channel.
    """

    def __init__(self, settings: ChannelSettings, channel: Channel, settle: Settle) -> None:
        self.name = settings.name
        self._settings, self._channel, self._settle = settings, channel, settle
        self._allowance = Allowance(settings.per_hour)
        self._entry, self._exit = anyio.create_memory_object_stream[Message](_MOST)
        self._held: list[Message] = []
        self._sending: anyio.CancelScope | None = None
        self._expired = False

    def put(self, message: Message) -> None:
        """Put in a message, at once."""
        try:
            self._entry.send_nowait(message)
        except anyio.WouldBlock:
            self._settle(self._settings, message, Delivery(error=f"{_MOST} messages wait already"))
        except anyio.ClosedResourceError:
            self._settle(self._settings, message, Delivery(error="the run has ended"))

    def close(self) -> None:
        """Take no more messages: ``run`` ends when all are settled."""
        self._entry.close()

    def expire(self) -> None:
        """Send no more messages: those that wait are settled as not sent."""
        self._expired = True
        if self._sending is not None:
            self._sending.cancel()

    async def run(self) -> None:
        """Send messages until the outbox is closed and empty."""
        while True:
            message: Message | None = None
            try:
                with anyio.move_on_after(self._allowance.wait(monotonic()) if self._held else math.inf):
                    message = await self._exit.receive()
            except anyio.EndOfStream:
                break
            if message is not None and not self._held and self._allowance.take(monotonic()):
                await self._deliver(message, [message])
                continue
            if message is not None:
                self._held.append(message)
            if self._allowance.take(monotonic()):
                await self._deliver_held()
        if self._held:
            await self._deliver_held()

    async def _deliver_held(self) -> None:
        held, self._held = self._held, []
        await self._deliver(Message.held_back(held, self._settings.per_hour), held)

    async def _deliver(self, message: Message, told: Sequence[Message]) -> None:
        """Send a message, and settle those that it tells of."""
        delivery = Delivery()
        if not self._expired:
            with anyio.CancelScope() as self._sending:
                await delivery.attempt_again(self._channel, message, self._settings.timeout)
            self._sending = None
        if self._expired and not delivery.sent:
            delivery.error = f"the run has ended before it was sent (last: {delivery.error or 'no answer yet'})"
        for each in told:
            self._settle(self._settings, each, delivery)
