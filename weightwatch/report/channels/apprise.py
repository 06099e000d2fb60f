"""The channel that reaches the services of the library apprise, in a process that can be killed."""

import json
import sys
from importlib.util import find_spec

from pydantic import SecretStr

from weightwatch.report.channels import child
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.secret import secret
from weightwatch.vectors.errors import WeightWatchError

URLS = "WEIGHTWATCH_APPRISE"
"""Environment variable by which the process gets its addresses: a command line could be read by everyone."""


class Apprise(Channel):
    """Sends messages with apprise, in a process of its own: its services bound neither time nor answers.

    Args:
        variable: Name of the environment variable that has one or more of its addresses.

    Raises:
        WeightWatchError: The variable is not set, or apprise is not installed.
    """

    def __init__(self, variable: str) -> None:
        self._urls = SecretStr(secret(variable))
        if find_spec("apprise") is None:
            raise WeightWatchError(
                "notify: the library apprise is not installed. Install it with `pip install 'weightwatch[apprise]'`."
            )

    async def send(self, message: Message) -> None:
        """Send a message to all addresses."""
        given = json.dumps({"title": message.subject, "body": message.text}).encode()
        program = [sys.executable, "-P", "-m", "weightwatch.report.channels.apprise_process"]
        await child.run(program, given, {URLS: self._urls.get_secret_value()})
