import sys
from typing import Any

import pytest

from weightwatch.channel import ChannelSettings
from weightwatch.report.channels.apprise import Apprise
from weightwatch.report.channels.base import Channel
from weightwatch.report.channels.command import Command
from weightwatch.report.channels.kinds import opened
from weightwatch.report.channels.mail import Mail
from weightwatch.report.channels.webhook import Webhook


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"webhook": "HOOK"}, Webhook),
        ({"email": {"host": "h", "sender": "a@b.c", "to": ["d@e.f"]}}, Mail),
        ({"command": [sys.executable]}, Command),
        ({"apprise": "HOOK"}, Apprise),
    ],
)
def test_each_kind_is_opened(given: dict[str, Any], kind: type[Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "https://host/")
    assert isinstance(opened(ChannelSettings.model_validate(given)), kind)
