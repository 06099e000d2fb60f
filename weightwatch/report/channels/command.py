"""The channel that runs a program of the user's."""

import json
import shutil
from collections.abc import Sequence

from weightwatch.report.channels import child
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.message import Message
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable


class Command(Channel):
    """Runs a program for each message, with the message as JSON on its standard input.

    ``WEIGHTWATCH_RUN``, ``_TITLE`` and ``_TEXT`` are in its environment, and for an alert also ``_ALERT``, ``_STATE``,
    ``_SEVERITY`` and ``_STEP``.

    Args:
        command: The program and its arguments.

    Raises:
        WeightWatchError: There is no such program.
    """

    def __init__(self, command: Sequence[str]) -> None:
        if shutil.which(command[0]) is None:
            raise WeightWatchError(
                f"notify: there is no program {command[0]!r} that can be run. Give its path, or remove the channel."
            )
        self._command = command

    async def send(self, message: Message) -> None:
        """Run the program."""
        await child.run(self._command, json.dumps(message.to_json()).encode() + b"\n", _environment(message))


def _environment(message: Message) -> dict[str, str]:
    found = {"RUN": message.run, "TITLE": message.title, "TEXT": message.text}
    alert = message.alert
    if alert is not None:
        found |= {
            "ALERT": printable(alert.alert),
            "STATE": alert.state,
            "SEVERITY": alert.severity,
            "STEP": str(alert.step),
        }
    return {f"WEIGHTWATCH_{key}": value for key, value in found.items()}
