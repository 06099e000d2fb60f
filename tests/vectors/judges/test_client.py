"""Bounds on requests: real servers on loopback that answer badly, or not at all."""

import collections
import gzip
import json
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.judges.client import MAX_SIZE, Client, Response

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


@contextmanager
def serving(speak: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """Hand each connection with the first bytes of its request to a function."""
    server = socket.create_server(("127.0.0.1", 0))

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            speak(connection, connection.recv(65536))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def answers(client: Client, *paths: str) -> list[Response]:
    async def call(http, path):
        return await client.request(http, "GET", path)

    found: dict[int, Response] = {}
    for part in client.run(call, paths):
        found.update(part)
    return [found[place] for place in sorted(found)]


def saying(body: bytes, *headers: str) -> Callable[[socket.socket, bytes], None]:
    head = OK + b"".join(f"{header}\r\n".encode() for header in headers)
    return lambda connection, asked: connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def drip(connection: socket.socket, asked: bytes) -> None:
    connection.sendall(OK + b"Content-Length: 1000\r\n\r\n")
    for _ in range(600):
        connection.sendall(b" ")
        time.sleep(0.1)


def drip_head(connection: socket.socket, asked: bytes) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 600:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


@pytest.mark.parametrize("speak", [drip, drip_head, lambda connection, asked: time.sleep(60)])
def test_the_limit_is_on_the_whole_request(speak: Callable[[socket.socket, bytes], None]) -> None:
    begun = time.monotonic()
    with serving(speak) as url, pytest.raises(WeightWatchError, match=r"no complete answer within 0\.5 s"):
        answers(Client(url, "", 1, 0.5), "/models")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_response_is_unpacked_up_to_the_limit(encoding: str, pack: Callable[[bytes], bytes]) -> None:
    with serving(saying(pack(b'{"a": 1}'), f"Content-Encoding: {encoding}")) as url:
        assert answers(Client(url, "", 1, 9), "/x") == [Response(200, b'{"a": 1}')]
    bomb = pack(b"9" * (MAX_SIZE + 10))
    assert len(bomb) < 20_000
    refused = pytest.raises(WeightWatchError, match="sends more than 8 MiB in one response")
    with serving(saying(bomb, f"Content-Encoding: {encoding}")) as url, refused:
        answers(Client(url, "", 1, 9), "/x")


@pytest.mark.parametrize(("encoding", "body"), [("br", b"x"), ("gzip", b"no gzip")])
def test_what_cannot_be_unpacked_is_an_error(encoding: str, body: bytes) -> None:
    refused = pytest.raises(WeightWatchError, match="is compressed, though it was asked not to")
    with serving(saying(body, f"Content-Encoding: {encoding}")) as url, refused:
        answers(Client(url, "", 1, 9), "/x")


def test_a_response_without_end_is_cut_off() -> None:
    def flood(connection: socket.socket, asked: bytes) -> None:
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with serving(flood) as url, pytest.raises(WeightWatchError, match="sends more than 8 MiB"):
        answers(Client(url, "", 1, 30), "/x")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_told_and_not_followed(status: int) -> None:
    asked: list[bytes] = []
    with serving(lambda connection, request: asked.append(request)) as other:
        head = f"HTTP/1.1 {status} Moved\r\nLocation: {other}/x?key=1\r\nContent-Length: 0\r\n\r\n".encode()
        refused = pytest.raises(WeightWatchError, match=rf"redirects to {other}/x\. Nothing was sent there")
        with serving(lambda connection, request: connection.sendall(head)) as url, refused:
            answers(Client(url, "sk-of-mine", 3, 9), "/x")
    assert asked == []


def test_a_failure_comes_after_the_results_of_those_that_had_begun() -> None:
    def speak(connection: socket.socket, asked: bytes) -> None:
        if b"/bad" in asked:
            connection.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
        else:
            time.sleep(0.5)
            saying(b"1")(connection, asked)

    with serving(speak) as url:
        client, found = Client(url, "", 1, 9), {}

        async def call(http, path):
            return await client.request(http, "GET", path)

        parts = client.run(call, ["/bad", *["/good"] * 20])
        with pytest.raises(WeightWatchError, match="HTTP 500"):
            collections.deque((found.update(part) for part in parts), maxlen=0)
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 7]


def test_a_caller_that_stops_is_not_waited_for() -> None:
    def speak(connection: socket.socket, asked: bytes) -> None:
        if b"/slow" in asked:
            time.sleep(60)
        saying(b"1")(connection, asked)

    begun = time.monotonic()
    with serving(speak) as url:
        client = Client(url, "", 1, 60)

        async def call(http, path):
            return await client.request(http, "GET", path)

        with closing(client.run(call, ["/quick", "/slow"])) as parts:
            assert next(parts) == {0: Response(200, b"1")}
    assert time.monotonic() - begun < 5


def test_ctrl_c_ends_at_once() -> None:
    asks = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits that it is ignored
from weightwatch.vectors.judges.client import Client
client = Client(sys.argv[1], "", 5, 60)
async def call(http, path): return await client.request(http, "GET", path)
print("asking", flush=True)
try: list(client.run(call, ["/x"] * 8))
except KeyboardInterrupt: print("interrupted")
"""
    asked = threading.Semaphore(0)

    def speak(connection: socket.socket, request: bytes) -> None:
        asked.release()
        time.sleep(60)

    with serving(speak) as url:
        process = subprocess.Popen([sys.executable, "-c", asks, url], stdout=subprocess.PIPE, text=True)
        assert all(asked.acquire(timeout=60) for _ in range(8))  # now it waits for the answers
        begun = time.monotonic()
        process.send_signal(2)
        told, _ = process.communicate(timeout=20)
    assert time.monotonic() - begun < 5
    assert told == "asking\ninterrupted\n"


def test_no_secret_is_in_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://bob:PR0XYWORD@proxy:3128")
    client = Client("http://alice:PASSW0RD@host:8000/v1?api_key=QUERYKEY", "sk-of-mine", 1, 9)
    assert client.place == "http://host:8000"
    told = "PR0XYWORD PASSW0RD QUERYKEY sk-of-mine YWxpY2U6UEFTU1cwUkQ=\x1b[2J\nnext"
    assert client.public(told) == "*** *** *** *** *** [2J next"
    refused = Response(401, json.dumps({"error": {"message": "no such key: sk-of-mine"}}).encode())
    assert client.described(refused) == "HTTP 401: no such key: ***"
    assert len(client.public("x" * 10_000)) < 400


def test_a_key_that_is_none_is_refused_and_not_shown() -> None:
    for key in ("sk-of\nmine", "sk-öf-mine"):
        with pytest.raises(
            WeightWatchError, match="The key in OPENAI_API_KEY has characters that no key has"
        ) as caught:
            Client("http://host", key, 1, 9)
        assert key not in str(caught.value)


@pytest.mark.parametrize("proxy", ["nonsense://bob:PR0XYWORD@proxy", "http://bob:PR0XYWORD@proxy:none"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(WeightWatchError) as caught:
        answers(Client("http://host.invalid/v1", "", 1, 2), "/x")
    assert "PR0XYWORD" not in str(caught.value)
