"""A delivery: the attempts to get one message over a channel."""

from dataclasses import dataclass
from functools import partial

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from weightwatch.report.channels.base import Channel, Undelivered
from weightwatch.report.channels.message import Message

TRIES = 4
_LONGEST_PAUSE = 60.0  # seconds
_growing = wait_exponential_jitter(initial=1.0, max=_LONGEST_PAUSE)


@dataclass
class Delivery:
    """The attempts so far.

    Attributes:
        sent: Whether one has succeeded.
        attempts: Their number.
        error: Why the last one failed, without any secret; None if none did.
    """

    sent: bool = False
    attempts: int = 0
    error: str | None = None

    async def attempt(self, channel: Channel, message: Message, timeout: float) -> None:
        """Try once.

        Args:
            channel: The channel.
            message: The message.
            timeout: Seconds for all of it.

        Raises:
            Undelivered: It failed, whatever the reason.
        """
        import anyio

        self.attempts += 1
        try:
            with anyio.fail_after(timeout):
                await channel.send(message)
        except TimeoutError:
            failed = Undelivered(f"no answer within {timeout:g} s")
        except Undelivered as error:
            failed = error
        except Exception as error:  # its text may have a secret
            failed = Undelivered(f"{type(error).__name__} in the channel")
        else:
            self.sent, self.error = True, None
            return
        self.error = str(failed)
        raise failed

    async def attempt_again(self, channel: Channel, message: Message, timeout: float, tries: int = TRIES) -> None:
        """Try until one attempt succeeds, or another is of no use; the pauses between them grow.

        Args:
            channel: The channel.
            message: The message.
            timeout: Seconds for each attempt.
            tries: Number of attempts, at most.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(tries),
            wait=_pause,
            retry=retry_if_exception(lambda error: isinstance(error, Undelivered) and error.again),
            retry_error_callback=lambda state: None,
        )
        try:
            await retrying(partial(self.attempt, channel, message, timeout))
        except Undelivered:
            return  # `error` says why


def _pause(state: RetryCallState) -> float:
    """Return the pause that the other side asks for, within reason, else one that grows."""
    failed = state.outcome.exception() if state.outcome is not None else None
    if isinstance(failed, Undelivered) and failed.pause is not None:
        return min(failed.pause, _LONGEST_PAUSE)
    return _growing(state)
