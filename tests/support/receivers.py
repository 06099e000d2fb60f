"""Receivers of alerts on loopback: real HTTP servers that answer badly, and a real SMTP server."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.support.runs import reading
from weightwatch.config import Rule
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import Engine

TOKEN = "T0TOKEN/B1SECRET/x9yz"
"""What an address has that nobody may see."""


def an_alert(name: str = "drift", step: int = 40, **of_rule: Any) -> Alert:
    rule = Rule.model_validate({"alert": name, "direction": "evil", "above": 0.1, **of_rule})
    (alert,) = Engine.of([rule]).apply(reading(step, 0.31))[1]
    return alert


@dataclass
class Hook:
    """A webhook, what it got, and how it answers.

    Attributes:
        answers: Statuses of the next answers; after them, 200.
        act: Answers in place of that, with the handler of the request.
        bodies: The bodies that it got.
        paths: The paths that were asked for.
        url: Its address.
        left: Set when the server ends, for answers that never come.
    """

    answers: list[int] = field(default_factory=list)
    act: Callable[[BaseHTTPRequestHandler, threading.Event], None] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    url: str = ""
    left: threading.Event = field(default_factory=threading.Event)


@contextmanager
def hook(*answers: int, act: Callable[[BaseHTTPRequestHandler, threading.Event], None] | None = None) -> Iterator[Hook]:
    """Serve a webhook."""
    made = Hook([*answers], act)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            made.bodies.append(json.loads(sent))
            made.paths.append(self.path)
            if made.act is not None:
                try:
                    made.act(self, made.left)
                except OSError:
                    self.close_connection = True
                return
            status = made.answers.pop(0) if made.answers else 200
            said = f"no such hook: {self.path}".encode()
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}/services/{TOKEN}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield made
    finally:
        made.left.set()
        server.shutdown()
        server.server_close()
        thread.join()


def hangs(handler: BaseHTTPRequestHandler, left: threading.Event) -> None:
    """Never answer."""
    left.wait()


def drips(handler: BaseHTTPRequestHandler, left: threading.Event) -> None:
    """Send one byte after the other, each well within any limit on a single read."""
    while not left.wait(0.02):
        handler.wfile.write(b"H")


def floods(handler: BaseHTTPRequestHandler, left: threading.Event) -> None:
    """Refuse with a body that has no end."""
    handler.send_response(400)
    handler.end_headers()
    while not left.is_set():
        handler.wfile.write(b"x" * 65536)


@dataclass
class Mailbox:
    """A mail server, and what it got.

    Attributes:
        port: Its port.
        letters: The messages, as sent.
        logins: The names and passwords.
        refuses: The answer to every recipient; None to take all.
    """

    port: int = 0
    letters: list[str] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    refuses: str | None = None

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if self.refuses is not None:
            return self.refuses
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.letters.append(envelope.content.decode())
        return "250 OK"


class _OnAnyPort(Controller):
    """A controller that connects to the port that its server has."""

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mailbox(certificate: Path | None = None, password: str | None = None) -> Iterator[Mailbox]:
    """Serve SMTP, with STARTTLS and a login if there is a certificate."""
    made = Mailbox()

    def allowed(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        made.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=data.password.decode() == password, handled=False)

    secured: dict[str, Any] = {}
    if certificate is not None:
        context = SSLContext(PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        secured = {"tls_context": context, "require_starttls": True, "authenticator": allowed, "auth_required": True}
    controller = _OnAnyPort(made, hostname="127.0.0.1", port=0, **secured)
    controller.start()
    made.port = controller.port
    try:
        yield made
    finally:
        controller.stop()


def certificate(folder: Path) -> Path:
    """Make a certificate of 127.0.0.1 that signs itself; its key lies beside it."""
    made = folder / "server.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(made.with_suffix(".key")), "-out", str(made)]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(["openssl", "req", "-x509", *key, *subject, *files], check=True, capture_output=True)
    return made
