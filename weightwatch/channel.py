"""Settings of a channel: where alerts are sent, so that a person who is not looking hears of them."""

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from weightwatch.vectors.document import Strict

Severity: TypeAlias = Literal["info", "warning", "critical"]
Body: TypeAlias = Literal["json", "slack", "discord"]

_KINDS = ("webhook", "email", "command", "apprise")
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SECRET = re.compile(r"://[^/\s]*@|hooks\.slack\.com/|/api/webhooks/|[?&](?:token|key|secret|password)=", re.IGNORECASE)
"""What shows that a word of a command is a secret: a password in an address, or an address that is one."""


def _variable(value: Any) -> str:
    """Refuse what is not the name of a variable, without repeating it: it may be the secret itself."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        raise ValueError(
            "it should be the name of an environment variable, in capitals, that has the secret; put the secret there, "
            "as in `export SLACK_WEBHOOK=https://…`, and write the name here"
        )
    return value


def _address(value: str) -> str:
    if not re.fullmatch(r"[!-~]+@[!-~]+", value) or re.search(r"[<>(),;:\"\\]", value):
        raise ValueError(f"{value!r} is not allowed; it should be an address such as me@example.org")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]+", value):
        raise ValueError("it should be the name of a server, such as smtp.example.org")
    return value


def _keys_and_values(value: Any) -> Any:
    if not isinstance(value, Mapping | Strict):
        raise ValueError("it should be keys and values")
    return value


def _command(value: Any) -> Any:
    if not isinstance(value, list) or not value or not all(isinstance(word, str) and word for word in value):
        raise ValueError("it should be a program and its arguments, a list of texts such as [notify-send, alert]")
    if any(_SECRET.search(word) for word in value):
        raise ValueError(
            "a word of the command has a secret, which would be recorded; let the command read it from an environment "
            "variable, all of which it gets"
        )
    if any("\0" in word for word in value):
        raise ValueError("a word of the command has a NUL character")
    return value


Variable = Annotated[str, BeforeValidator(_variable)]
Address = Annotated[str, AfterValidator(_address)]


class EmailSettings(Strict):
    """How e-mails are sent.

    Attributes:
        host: The SMTP server.
        port: Its port. Default 587.
        security: ``starttls`` (default), ``tls`` (from the first byte, usually port 465), or ``none``.
        sender: Address of the sender.
        to: Addresses of the recipients.
        user: The name to log in with; needs ``password``. Default: no login.
        password: Name of the environment variable that has the password.
    """

    host: Annotated[str, AfterValidator(_host)]
    port: int = Field(587, ge=1, le=65535)
    security: Literal["starttls", "tls", "none"] = "starttls"
    sender: Address
    to: list[Address] = Field(min_length=1)
    user: str | None = Field(None, min_length=1)
    password: Variable | None = None

    @model_validator(mode="after")
    def _a_whole_login(self) -> "EmailSettings":
        if (self.user is None) != (self.password is None):
            raise ValueError("a login needs both `user` and `password`; give both, or neither")
        if self.password is not None and self.security == "none" and self.host not in _LOCAL:
            raise ValueError("the password would be sent unencrypted; set `security: starttls` or `tls`")
        return self


class ChannelSettings(Strict):
    """Where alerts are sent, and which. Exactly one of ``webhook``, ``email``, ``command`` and ``apprise`` is given.

    Secrets are never in the settings, which are recorded: they name the environment variables that have them.

    Attributes:
        webhook: Name of the environment variable that has the URL, to which a JSON body is posted.
        body: Shape of the webhook's body: ``json`` (default; the alert as in alerts.jsonl, with the run and a text),
            ``slack`` or ``discord``.
        email: The server, sender and recipients of an e-mail.
        command: A program and its arguments. It gets the alert as JSON on its standard input.
        apprise: Name of the environment variable that has one or more URLs of the library apprise.
        severity: The least severity that is sent: ``info``, ``warning`` (default) or ``critical``.
        timeout: Seconds that an attempt may take as a whole. Default 10.
        per_hour: Number of messages in an hour, at most. Alerts beyond it are summed up in one message. Default 20.

    Example:
        >>> ChannelSettings(webhook="SLACK_WEBHOOK", body="slack").name
        'webhook SLACK_WEBHOOK'
    """

    webhook: Variable | None = None
    body: Body = "json"
    email: Annotated[EmailSettings, BeforeValidator(_keys_and_values)] | None = None
    command: Annotated[list[str], BeforeValidator(_command)] | None = None
    apprise: Variable | None = None
    severity: Severity = "warning"
    timeout: float = Field(10.0, gt=0, le=300)
    per_hour: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> "ChannelSettings":
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(f'`{kind}`' for kind in _KINDS)}")
        if self.body != "json" and self.webhook is None:
            raise ValueError("`body` has a meaning for a `webhook` only")
        return self

    @property
    def name(self) -> str:
        """What messages and the record call the channel. It has no secret."""
        if self.email is not None:
            return f"email {', '.join(self.email.to)}"
        if self.command is not None:
            return f"command {shlex.join(self.command)}"
        return f"webhook {self.webhook}" if self.webhook is not None else f"apprise {self.apprise}"


def _channels(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(each, Mapping | ChannelSettings) for each in value):
        raise ValueError("it should be a list of channels, such as `- webhook: SLACK_WEBHOOK`")
    return value


Channels = Annotated[list[ChannelSettings], BeforeValidator(_channels)]
"""The channels of a run. What is no channel is refused without being repeated, since it may be a secret."""
