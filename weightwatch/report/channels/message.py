"""A message: an alert, or a few words, in the shapes that the receivers of webhooks understand."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from weightwatch.channel import Body
from weightwatch.rules.alert import Alert
from weightwatch.vectors.printable import printable

_TITLE = 200  # characters
_SLACK = 4000  # characters of a text; Slack splits a longer one
_DISCORD = 2000  # characters of a content; Discord refuses a longer one
_SUPPRESS_EMBEDS = 4  # a flag of Discord's messages


@dataclass(frozen=True)
class Message:
    """What is sent over a channel.

    Attributes:
        run: Name of the run.
        title: What has happened, in a few words.
        text: What has happened, in full.
        alert: The alert; None if the message is about something else.

    Example:
        >>> Message("fine-tune", "a <b>", "@everyone & others").body("slack")["text"]
        'fine-tune: @everyone &amp; others'
    """

    run: str
    title: str
    text: str
    alert: Alert | None = None

    @classmethod
    def of(cls, alert: Alert, run: str) -> "Message":
        """Return the message of an alert."""
        return cls(printable(run), printable(f"{alert.alert} {alert.state}"), alert.describe(), alert)

    @classmethod
    def held_back(cls, messages: "Sequence[Message]", per_hour: int) -> "Message":
        """Return the message that sums up those that were held back, since there were too many in an hour."""
        counts = Counter(message.title for message in messages)
        listed = ", ".join(f"{title} ({count})" if count > 1 else title for title, count in counts.items())
        one = len(messages) == 1
        return cls(
            messages[0].run,
            f"{len(messages)} more alert{'' if one else 's'}",
            f"{len(messages)} more alert{' was' if one else 's were'} held back, since at most {per_hour} are sent in "
            f"an hour: {listed}. The newest: {messages[-1].text}",
        )

    @property
    def subject(self) -> str:
        """One line that says it all."""
        return _cut(f"weightwatch: {self.run}: {self.title}", _TITLE)

    @property
    def whole(self) -> str:
        """The text, with the run."""
        return f"{self.run}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the alert, as in alerts.jsonl, with those of the message."""
        of_alert = self.alert.to_json() if self.alert is not None else {}
        return {
            **of_alert,
            "run": self.run,
            "title": self.title,
            "text": self.text,
            "weightwatch": version("weightwatch"),
        }

    def body(self, shape: Body) -> dict[str, Any]:
        """Return the body of a webhook.

        Names from elsewhere are shown as they are: they mention nobody, and are no markup, link or picture.

        Args:
            shape: ``json``, ``slack`` or ``discord``.
        """
        if shape == "slack":
            text = _cut(self.whole, _SLACK).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return {"text": text, "mrkdwn": False, "link_names": False, "unfurl_links": False, "unfurl_media": False}
        if shape == "discord":
            text = re.sub(r"[\\*_~`|<>#@:()\[\]-]", r"\\\g<0>", self.whole)
            return {
                "content": _cut(text, _DISCORD),
                "allowed_mentions": {"parse": []},
                "flags": _SUPPRESS_EMBEDS,
            }
        return self.to_json()


def _cut(text: str, length: int) -> str:
    """Return a text, or the beginning of a longer one, not between a backslash and what it escapes."""
    return text if len(text) <= length else text[: length - 1].rstrip("\\") + "…"
