from typing import Any

import pytest

from weightwatch import Config, WeightWatchError
from weightwatch.channel import ChannelSettings

EMAIL = {"host": "smtp.example.org", "sender": "watch@example.org", "to": ["me@example.org"]}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"webhook": "HOOK"}, "webhook HOOK"),
        ({"email": EMAIL}, "email me@example.org"),
        ({"command": ["notify-send", "two words"]}, "command notify-send 'two words'"),
        ({"apprise": "URLS"}, "apprise URLS"),
    ],
)
def test_a_channel_has_a_name_without_secrets(given: dict[str, Any], name: str) -> None:
    settings = Config.load({"notify": [given]})
    assert settings.notify[0].name == name
    assert (settings.notify[0].severity, settings.notify[0].per_hour) == ("warning", 20)
    assert ChannelSettings.model_validate(settings.notify[0].model_dump()) == settings.notify[0]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("https://u:hunter2@host/", "a list of channels"),
        (["https://u:hunter2@host/"], "a list of channels"),
        ([{"webhook": "https://u:hunter2@host/"}], r"notify\[0\].webhook: it should be the name of an environment"),
        ([{"webhook": {"url": "hunter2"}}], "the name of an environment variable"),
        ([{"url": "hunter2"}], "url is not a known key"),
        ([{"apprise": "slack://hunter2"}], "the name of an environment variable"),
        ([{"email": "smtp://u:hunter2@host"}], "keys and values"),
        ([{"email": {**EMAIL, "user": "me", "password": "hunter2"}}], "the name of an environment variable"),
        ([{"email": {**EMAIL, "host": "u:hunter2@host"}}], "the name of a server"),
        ([{"command": "curl https://u:hunter2@host"}], "a program and its arguments"),
        ([{"command": ["curl", "https://u:hunter2@host"]}], "has a secret"),
        ([{"command": ["curl", "https://hooks.slack.com/services/hunter2"]}], "has a secret"),
        ([{"command": ["curl", "https://host/?token=hunter2"]}], "has a secret"),
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(given: Any, reason: str) -> None:
    with pytest.raises(WeightWatchError, match=reason) as caught:
        Config.load({"notify": given})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([{}], "give exactly one of `webhook`"),
        ([{"webhook": "A", "apprise": "B"}], "give exactly one"),
        ([{"webhook": "A"}, {"webhook": "A", "severity": "info"}], "'webhook A' is there twice"),
        ([{"apprise": "A", "body": "slack"}], "for a `webhook` only"),
        ([{"webhook": "A", "body": "teams"}], "'json', 'slack' or 'discord'"),
        ([{"webhook": "A", "timeout": 0}], "greater than 0"),
        ([{"command": []}], "a program and its arguments"),
        ([{"email": {**EMAIL, "to": ["me@example.org\nBcc: you@example.org"]}}], "an address such as"),
        ([{"email": {**EMAIL, "user": "me"}}], "both `user` and `password`"),
        ([{"email": {**EMAIL, "user": "me", "password": "P", "security": "none"}}], "unencrypted"),
    ],
)
def test_a_channel_that_can_not_be_meant_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(WeightWatchError, match=reason):
        Config.load({"notify": given})
