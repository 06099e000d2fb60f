"""The thread that sends messages, so that no channel makes the training wait."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from weightwatch.report.channels.outbox import Outbox

_START = 10.0  # seconds
_LAST = 2.0  # seconds: what was not sent is recorded meanwhile


class Courier:
    """Runs outboxes on a thread of its own, side by side. The thread ends with the process, whatever it is doing.

    Args:
        outboxes: Makes the outboxes; called on the thread.
    """

    def __init__(self, outboxes: Callable[[], Sequence[Outbox]]) -> None:
        self._make = outboxes
        self._outboxes: Sequence[Outbox] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready, self._done = threading.Event(), threading.Event()
        self._process = os.getpid()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: No thread can be started.
        """
        import anyio

        threading.Thread(target=anyio.run, args=[self._work], name="weightwatch-notify", daemon=True).start()
        if not self._ready.wait(_START):
            raise RuntimeError("the thread that sends alerts does not start")

    def call(self, act: Callable[[Outbox], None]) -> None:
        """Call a function with each outbox, on the thread. This does not wait."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the thread has ended
                for outbox in self._outboxes:
                    self._loop.call_soon_threadsafe(act, outbox)

    def close(self, patience: float) -> bool:
        """Let the outboxes send what waits.

        Args:
            patience: Seconds that this may take. What was not sent by then is settled as not sent.

        Returns:
            Whether all was settled.
        """
        if os.getpid() != self._process:  # a fork has no such thread
            return True
        self.call(Outbox.close)
        if self._done.wait(patience):
            return True
        self.call(Outbox.expire)
        return self._done.wait(_LAST)

    async def _work(self) -> None:
        import anyio

        try:
            self._outboxes, self._loop = self._make(), asyncio.get_running_loop()
            self._ready.set()
            async with anyio.create_task_group() as tasks:
                for outbox in self._outboxes:
                    tasks.start_soon(outbox.run)
        finally:
            self._done.set()
