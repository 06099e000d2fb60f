"""The channel that posts JSON to an address: bounded in time and in size, and never redirected."""

import json
import logging
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pydantic import SecretStr

from weightwatch.channel import Body
from weightwatch.report.channels.base import Channel, Undelivered
from weightwatch.report.channels.message import Message
from weightwatch.report.channels.secret import hidden, secret
from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    import httpx2

_MOST = 4096  # bytes that are read of an answer
_AGAIN = {408, 409, 425, 429}  # and 500 and above

_posting: ContextVar[bool] = ContextVar("_posting", default=False)


def _unsaid(record: logging.LogRecord) -> bool:
    """Keep the addresses of webhooks out of the log: a filter of the logger ``httpx2``, which has them at INFO."""
    return not _posting.get()


class Webhook(Channel):
    """Posts messages to an address. An answer with a status from 200 to 299 says that one has arrived.

    Args:
        variable: Name of the environment variable that has the address.
        shape: Shape of the body.

    Raises:
        WeightWatchError: The variable is not set, or has no address.
    """

    def __init__(self, variable: str, shape: Body) -> None:
        import httpx2

        given = secret(variable)
        try:
            url = httpx2.URL(given)
        except httpx2.InvalidURL:
            url = httpx2.URL("")
        if not url.host or url.scheme not in ("http", "https"):
            raise WeightWatchError(
                f"notify: the environment variable {variable} has no address of a webhook. Set it to one that begins "
                "with https://."
            )
        self._shape, self._url = shape, SecretStr(given)
        raw = url.raw_path.decode("ascii")
        query = [value for _, value in url.params.multi_items()]
        parts = [*url.path.split("/"), *raw.split("/"), *query]
        self._secrets = tuple(map(SecretStr, [given, raw, url.path, url.password, *parts]))
        logging.getLogger("httpx2").addFilter(_unsaid)

    async def send(self, message: Message) -> None:
        """Post a message. Of the answer to one that was refused, the beginning is read."""
        import httpx2

        content = json.dumps(message.body(self._shape)).encode()  # ASCII: a lone surrogate is no UTF-8
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        token = _posting.set(True)
        try:
            async with (
                httpx2.AsyncClient(timeout=None, follow_redirects=False) as http,
                http.stream("POST", self._url.get_secret_value(), content=content, headers=headers) as response,
            ):
                if not response.is_success:
                    raise await self._refused(response)
        except (httpx2.HTTPError, OSError) as error:
            raise Undelivered(self._shown(str(error)) or type(error).__name__) from None
        finally:
            _posting.reset(token)

    async def _refused(self, response: "httpx2.Response") -> Undelivered:
        status = response.status_code
        if 300 <= status < 400:
            return Undelivered(f"HTTP {status}, a redirect, which is not followed", again=False)
        said = b""
        async for part in response.aiter_raw(_MOST):
            said += part
            if len(said) >= _MOST:
                break
        told = self._shown(said[:_MOST].decode("utf-8", errors="replace"))
        again = status in _AGAIN or status >= 500
        return Undelivered(f"HTTP {status}" + (f": {told}" if told else ""), again=again, pause=_asked(response))

    def _shown(self, text: str) -> str:
        return hidden(text, [each.get_secret_value() for each in self._secrets])


def _asked(response: "httpx2.Response") -> float | None:
    """Return the seconds that a server asks to wait, if it does."""
    with suppress(KeyError, ValueError):
        pause = float(response.headers["retry-after"])
        return pause if pause >= 0 else None
    return None
