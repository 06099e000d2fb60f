import email
from email import policy
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.support.receivers import Mailbox, an_alert, certificate, mailbox
from weightwatch.channel import EmailSettings
from weightwatch.report.channels.base import Undelivered
from weightwatch.report.channels.delivery import Delivery
from weightwatch.report.channels.mail import Mail
from weightwatch.report.channels.message import Message


def opened(to: Mailbox, **changes: Any) -> Mail:
    plain = {"host": "127.0.0.1", "port": to.port, "security": "none", "sender": "watch@example.org"}
    return Mail(EmailSettings.model_validate({**plain, "to": ["me@example.org", "you@example.org"], **changes}))


def test_a_letter_is_plain_text_that_forges_no_header() -> None:
    message = Message.of(an_alert("<b>böse</b>\r\nBcc: x@example.org"), "fine-tune\n")
    with mailbox() as made:
        anyio.run(opened(made).send, message)
    letter = email.message_from_string(made.letters[0], policy=policy.default)
    assert letter["To"] == "me@example.org, you@example.org"
    assert letter["Subject"] == "weightwatch: fine-tune\\n: <b>böse</b>\\r\\nBcc: x@example.org firing"
    assert letter["Bcc"] is None
    assert letter.get_content_type() == "text/plain"
    assert message.text in letter.get_content()
    assert letter["Date"] is not None


def test_the_login_is_sent_after_starttls_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("PASSWORD", "hunter2")
    login = {"security": "starttls", "user": "me", "password": "PASSWORD"}
    with mailbox(file, "hunter2") as made:
        anyio.run(opened(made, **login).send, Message("run", "title", "text"))
        assert (len(made.letters), made.logins) == (1, [("me", "hunter2")])
        monkeypatch.setenv("PASSWORD", "other-secret")
        with pytest.raises(Undelivered, match="SMTP 535") as caught:
            anyio.run(opened(made, **login).send, Message("run", "title", "text"))
    assert not caught.value.again
    assert "other-secret" not in str(caught.value)


def test_a_server_whose_certificate_is_not_trusted_gets_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2")
    with mailbox(certificate(tmp_path), "hunter2") as made:
        channel = opened(made, security="starttls", user="me", password="PASSWORD")
        with pytest.raises(Undelivered, match="certificate"):
            anyio.run(channel.send, Message("run", "title", "text"))
    assert made.logins == []


def test_a_server_without_starttls_gets_nothing() -> None:
    with mailbox() as made, pytest.raises(Undelivered, match="STARTTLS"):
        anyio.run(opened(made, security="starttls").send, Message("run", "title", "text"))
    assert made.letters == []


@pytest.mark.parametrize(("answer", "again"), [("450 later", True), ("550 nobody", False)])
def test_refused_recipients_are_told(answer: str, again: bool) -> None:
    with mailbox() as made:
        made.refuses = answer
        with pytest.raises(Undelivered, match="refuses the recipients") as caught:
            anyio.run(opened(made).send, Message("run", "title", "text"))
    assert caught.value.again is again


def test_a_server_that_says_nothing_is_left_in_time() -> None:
    delivery = Delivery()

    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            await delivery.attempt_again(opened(Mailbox(port)), Message("run", "title", "text"), 0.2, 1)

    anyio.run(main)
    assert delivery.error == "no answer within 0.2 s"
