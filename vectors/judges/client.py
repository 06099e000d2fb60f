"""HTTP requests to a judge: bounded in time and in size, never redirected, and without secrets in what is recorded."""

import base64
import json
import urllib.request
import zlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    import httpx2

Item = TypeVar("Item")
Result = TypeVar("Result")
Call: TypeAlias = "Callable[[httpx2.AsyncClient, Item], Awaitable[Result]]"

KEY = "OPENAI_API_KEY"
"""Environment variable with the API key; local servers need none."""

MAX_SIZE = 8 << 20
"""Bytes of a response, unpacked."""
_CONCURRENT = 8  # requests
_MESSAGE = 300  # characters of a server's message
_SECRET = 4  # characters; anything shorter is no secret, and is found in ordinary words
_LONGEST_PAUSE = 30.0  # seconds
_AGAIN = {408, 409, 425, 429}  # and 500 and above


@dataclass(frozen=True)
class Response:
    """A server's response.

    Attributes:
        status: The HTTP status.
        content: The body, unpacked.
    """

    status: int
    content: bytes


class Client:
    """Sends requests to one address.

    Args:
        url: The address, such as ``http://localhost:8000/v1``. It may have a password or a query.
        key: The API key; empty if there is none.
        tries: Number of attempts per request, with exponential backoff.
        timeout: Seconds that an attempt may take as a whole, from connecting to the last byte.

    Attributes:
        place: Scheme, host and port, which messages name the server by.

    Raises:
        WeightWatchError: The address or the key can't be one.
    """

    def __init__(self, url: str, key: str, tries: int, timeout: float) -> None:
        import httpx2

        try:
            self._url = httpx2.URL(url)
        except httpx2.InvalidURL:
            self._url = httpx2.URL("")
        if not self._url.host or self._url.scheme not in ("http", "https"):
            raise WeightWatchError("The judge's address is not a URL. Pass one such as http://localhost:8000/v1.")
        key = key.strip()
        if not (key.isascii() and key.isprintable()):
            raise WeightWatchError(f"The key in {KEY} has characters that no key has. Set it again.")
        self.place = f"{self._url.scheme}://{self._url.netloc.decode()}"
        self._key, self._tries, self._timeout = key, tries, timeout
        self._secrets = self._found_secrets(url)

    def run(self, call: "Call[Item, Result]", items: Sequence[Item]) -> Generator[dict[int, Result], None, None]:
        """Call a function for each item, several at once, and yield the results by position as they come.

        When one fails, those that have begun are waited for, so that none of their results is lost. When the caller
        stops, or is interrupted, all are cancelled.

        Raises:
            WeightWatchError: What the first failure raises, after the results of the others.
        """
        from anyio.from_thread import start_blocking_portal

        waiting, running = iter(enumerate(items)), dict[Future[Result], int]()
        failure: BaseException | None = None
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._connection()) as http:
            while True:
                free = 0 if failure else _CONCURRENT - len(running)
                for number, item in islice(waiting, free):
                    running[portal.start_task_soon(call, http, item)] = number
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                numbers = {future: running.pop(future) for future in done}
                failure = failure or next((error for each in done if (error := each.exception()) is not None), None)
                yield {numbers[each]: each.result() for each in done if each.exception() is None}
        if failure is not None:
            raise failure

    async def request(self, http: "httpx2.AsyncClient", method: str, path: str, body: Any = None) -> Response:
        """Send a request below the address.

        Args:
            http: The connection that ``run`` hands to its calls.
            method: The HTTP method.
            path: Path after that of the address, such as ``/models``.
            body: Sent as JSON.

        Returns:
            The response, whatever its status, except for those that mean that the server is busy or broken.

        Raises:
            WeightWatchError: No such response within the number of attempts; or the server redirects, or sends more
                than ``MAX_SIZE`` bytes.
        """
        import anyio
        import httpx2

        reason = ""
        for attempt in range(self._tries):
            pause = 0.5 * 2**attempt
            try:
                with anyio.fail_after(self._timeout):
                    response, asked = await self._sent(http, method, path, body)
            except TimeoutError:
                reason = f"no complete answer within {self._timeout:g} s"
            except (httpx2.HTTPError, OSError) as error:
                reason = self.public(str(error)) or type(error).__name__
            else:
                if response.status not in _AGAIN and response.status < 500:
                    return response
                reason, pause = self.described(response), pause if asked is None else asked
            if attempt + 1 < self._tries:
                await anyio.sleep(min(pause, _LONGEST_PAUSE))
        raise self.unanswered(reason)

    def unanswered(self, reason: str) -> WeightWatchError:
        """Return the error of a server that does not answer."""
        return WeightWatchError(
            f"The judge at {self.place} does not answer ({reason}). Start it, or check the address, --judge-model and "
            f"{KEY}. The verdicts of a build are saved as they come, and the same command resumes from them."
        )

    def described(self, response: Response) -> str:
        """Return the status of a response, and the server's message if there is one."""
        error = fault(response)
        told = error.get("message") if error else None
        return f"HTTP {response.status}" + (f": {self.public(str(told))}" if told else "")

    def public(self, text: str) -> str:
        """Return the beginning of a text for messages and cards: without secrets, in one line."""
        shown = "".join(c if c.isprintable() else " " for c in self.without_secrets(text))
        line = " ".join(shown.split())
        return line if len(line) <= _MESSAGE else f"{line[:_MESSAGE]}…"

    def without_secrets(self, text: str) -> str:
        """Return a text without the key, and without the password and the query of the address."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _found_secrets(self, url: str) -> list[str]:
        """Return what must not be recorded, longest first."""
        proxies = [urlsplit(proxy).password or "" for proxy in urllib.request.getproxies().values()]
        user, password = self._url.username, self._url.password
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        query = [value for _, value in self._url.params.multi_items()]
        raw = urlsplit(url)
        found = {self._key, password, basic, raw.password or "", raw.query, *query, *proxies}
        return sorted((each for each in found if len(each) >= _SECRET), key=len, reverse=True)

    def _connection(self) -> "httpx2.AsyncClient":
        import httpx2

        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            return httpx2.AsyncClient(headers=headers, timeout=None, follow_redirects=False)
        except (ValueError, ImportError, OSError, httpx2.InvalidURL):
            raise WeightWatchError(
                "The proxy or the certificates that the environment names can't be used. Check HTTP_PROXY, "
                "HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE."
            ) from None

    async def _sent(
        self, http: "httpx2.AsyncClient", method: str, path: str, body: Any
    ) -> tuple[Response, float | None]:
        """Return a response, and the seconds that the server asks to wait before another attempt."""
        url = self._url.copy_with(path=self._url.path.rstrip("/") + path)
        content = None if body is None else json.dumps(body).encode()  # ASCII: a lone surrogate is no UTF-8
        async with http.stream(method, url, content=content) as response:
            if 300 <= response.status_code < 400:
                target = response.headers.get("location", "another address")
                raise WeightWatchError(
                    f"The judge at {self.place} redirects to {self.public(target.partition('?')[0])}. Nothing was sent "
                    "there. If it is the judge, pass its address."
                )
            packed = bytearray()
            async for part in response.aiter_raw():
                packed += part
                if len(packed) > MAX_SIZE:
                    raise self._too_large()
            unpacked = self._unpacked(bytes(packed), response.headers.get("content-encoding", "identity"))
            return Response(response.status_code, unpacked), _pause(response.headers)

    def _unpacked(self, content: bytes, encoding: str) -> bytes:
        if encoding.lower() == "identity":
            return content
        try:
            if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
                raise zlib.error
            unpacked = zlib.decompressobj(wbits=47).decompress(content, MAX_SIZE + 1)  # gzip or zlib
        except zlib.error:
            raise self.unanswered("its response is compressed, though it was asked not to") from None
        if len(unpacked) > MAX_SIZE:
            raise self._too_large()
        return unpacked

    def _too_large(self) -> WeightWatchError:
        return WeightWatchError(
            f"The server at {self.place} sends more than {MAX_SIZE >> 20} MiB in one response, which no judge does. "
            "Check the address."
        )


def fault(response: Response) -> dict[str, Any]:
    """Return the ``error`` object of a response; of one that has none, an empty one."""
    from pydantic_core import from_json

    try:
        body = from_json(response.content)
    except ValueError:
        return {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _pause(headers: "httpx2.Headers") -> float | None:
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            pause = unit * float(headers[name])
            return pause if pause >= 0 else None
    return None
