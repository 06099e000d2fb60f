"""A notification: what became of one alert on one channel, as a line of ``notifications.jsonl``."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import TypeAdapter, ValidationError

from weightwatch.reading.reading import LINE
from weightwatch.rules.alert import Alert

NOTIFICATIONS = "notifications.jsonl"
"""No resume sets its lines aside: what was sent stays sent."""

Key: TypeAlias = tuple[str, str, str, int]
"""A channel, and an alert: the name of its rule, its state and its step."""


@dataclass(frozen=True)
class Notification:
    """What became of one alert on one channel."""

    __pydantic_config__ = LINE

    step: int
    """Step of the alert."""
    alert: str
    """Name of its rule."""
    state: str
    """Whether the rule began to fire or was resolved."""
    channel: str
    """Name of the channel."""
    time: str
    """Time of the last attempt: ISO 8601, UTC."""
    sent: bool
    """Whether the alert was sent, by itself or in a sum of several."""
    attempts: int
    """Number of attempts."""
    error: str | None = None
    """Why the last failed attempt has failed; None if none has."""

    @property
    def key(self) -> Key:
        """The channel and the alert."""
        return self.channel, self.alert, self.state, self.step

    def to_json(self) -> dict[str, Any]:
        """Return the line."""
        return asdict(self)


def key(channel: str, alert: Alert) -> Key:
    """Return the key of the notifications of an alert on a channel."""
    return channel, alert.alert, alert.state, alert.step


def notifications(folder: Path) -> Iterator[Notification]:
    """Yield the notifications in a record, oldest first. Damaged lines are left out.

    Args:
        folder: The folder of the record.

    Raises:
        OSError: The file is there and can't be read.
    """
    path = folder / NOTIFICATIONS
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            yield _lines().validate_json(line)
        except ValidationError:
            continue


@cache
def _lines() -> "TypeAdapter[Notification]":
    return TypeAdapter(Notification)
