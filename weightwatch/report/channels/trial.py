"""A trial of channels: one message over each, before a training."""

from collections.abc import Sequence

from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.kinds import opened
from weightwatch.report.channels.message import Message

_TEXT = "This is a test. The alerts of a run that has this channel in its settings arrive here."


def tried(channels: Sequence[ChannelSettings]) -> dict[str, Delivery]:
    """Send a test message over each channel, all at once and with one attempt.

    Args:
        channels: Settings of the channels.

    Returns:
        What became of it, by the channel's name.

    Raises:
        WeightWatchError: A channel can't be opened; see ``kinds.opened``.
    """
    import anyio

    found = {settings.name: (settings, opened(settings), Delivery()) for settings in channels}
    message = Message("weightwatch check", "a test", _TEXT)

    async def send() -> None:
        async with anyio.create_task_group() as tasks:
            for settings, channel, delivery in found.values():
                tasks.start_soon(delivery.attempt_again, channel, message, settings.timeout, 1)

    anyio.run(send)
    return {name: delivery for name, (_, _, delivery) in found.items()}
