"""A judge on loopback: a real HTTP server with the two OpenAI endpoints that are asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "org/judge"


@dataclass
class Endpoint:
    """What a server says, and what it was asked.

    Attributes:
        reply: Makes the judge's words of the prompt.
        url: Its address.
        failures: How many requests still fail with status 500.
        raw: Sent for every request in place of all else.
        finish: Why a reply ended.
        refuse: Returns the error with which a body is refused with status 400, if it is.
        status: The status of a refusal.
        asked: The bodies of the requests that were answered.
        keys: What they were signed with.
        failed: How many were not.
    """

    reply: Callable[[str], Any]
    url: str = ""
    failures: int = 0
    raw: str | None = None
    finish: str = "stop"
    refuse: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda body: None
    status: int = 400
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    failed: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        with self.lock:
            if self.raw is not None:
                return 200, self.raw
            if self.failures:
                self.failures, self.failed = self.failures - 1, self.failed + 1
                return 500, "{}"
            if path == "/v1/models":
                return 200, json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
            if body["model"] != MODEL:
                return 404, json.dumps({"error": {"message": f"The model {body['model']} does not exist."}})
            refused = self.refuse(body)
            if refused is not None:
                return self.status, json.dumps({"error": refused})
            self.asked.append(body)
            message = {"role": "assistant", "content": self.reply(body["messages"][0]["content"])}
            choice = {"index": 0, "message": message, "finish_reason": self.finish}
            return 200, json.dumps({"id": "1", "object": "chat.completion", "model": MODEL, "choices": [choice]})


@contextmanager
def serving(endpoint: Endpoint, port: int = 0) -> Iterator[Endpoint]:
    """Serve on a port for a while, by default any that is free; it is closed afterwards."""

    class Handler(BaseHTTPRequestHandler):
        wbufsize = -1  # head and body go in one piece

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            endpoint.keys.add(self.headers["Authorization"])
            status, said = endpoint.answer(self.path.partition("?")[0], json.loads(sent) if sent else {})
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if said.startswith("<") else "application/json")
            self.send_header("Content-Length", str(len(said.encode())))
            self.send_header("retry-after-ms", "1")  # a client heeds it
            self.end_headers()
            self.wfile.write(said.encode())

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
