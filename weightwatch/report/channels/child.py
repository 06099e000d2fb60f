"""A program that is run for one message, and killed with all that it has started if it takes too long."""

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE

from weightwatch.report.channels.base import Undelivered


async def run(command: Sequence[str], given: bytes, environment: Mapping[str, str]) -> None:
    """Run a program, without a shell. What it prints is not read, since it may have secrets.

    Args:
        command: The program and its arguments.
        given: Its standard input, which it need not read.
        environment: Environment variables beside those of this process.

    Raises:
        Undelivered: It could not be started, or its exit status is not 0.
    """
    import anyio

    try:
        process = await anyio.open_process(
            command,
            stdin=PIPE,
            stdout=DEVNULL,
            stderr=DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        raise Undelivered(f"the program can't be started ({error.strerror})", again=False) from None
    try:
        assert process.stdin is not None
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.send(given)
        await process.stdin.aclose()
        status = await process.wait()
    except BaseException:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await process.wait()
        raise
    if status:
        raise Undelivered(f"exit status {status}")
