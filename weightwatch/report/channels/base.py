"""What a channel is: something that delivers a message, or says why it could not."""

from weightwatch.report.channels.message import Message


class Undelivered(Exception):  # noqa: N818  # an outcome that the caller handles
    """A message was not delivered.

    Args:
        reason: Why, without any secret.
        again: Whether another attempt may succeed.
        pause: Seconds that the other side asks to wait before it; None if it does not say.
    """

    def __init__(self, reason: str, *, again: bool = True, pause: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.pause = again, pause


class Channel:
    """Delivers messages. It is used on one thread, in an event loop of asyncio."""

    async def send(self, message: Message) -> None:
        """Deliver a message. The caller limits the time, and cancels.

        Raises:
            Undelivered: It was not delivered.
        """
        raise NotImplementedError
