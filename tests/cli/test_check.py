"""``weightwatch check`` as a user calls it."""

from pathlib import Path

import pytest

from tests.support.commands import call, refused, told
from tests.support.receivers import TOKEN, hook
from weightwatch.cli.exit_status import BAD_INPUT

SETTINGS = """
directions: [evil]
controls: [style]
rules:
  - {alert: drift, direction: evil, metric: over_controls, above: 0.05}
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(SETTINGS)
    return file


def test_settings_that_are_valid_say_what_they_watch(settings: Path) -> None:
    result = call("check", settings)
    assert result.exit_code == 0
    assert "evil over_controls above 0.05, for 1" in " ".join(result.output.split())
    assert "Pass --model to see whether the directions fit it" in result.output


def test_directions_that_fit_and_that_do_not(settings: Path) -> None:
    assert "all directions fit the model" in call("check", settings, "--model", "organism").output
    settings.write_text(SETTINGS.replace("[style]", "[style, smollm2/hostile]"))
    result = call("check", settings, "--model", "organism")
    assert result.exit_code == BAD_INPUT
    assert "hostile: Direction 'hostile' was built from weightwatch/smollm2" in result.output


def test_the_json_says_the_same(settings: Path) -> None:
    found = told("check", settings, "--model", "organism")
    assert [(each["name"], each["kind"], each["misfit"]) for each in found["directions"]] == [
        ("evil", "behaviour", None),
        ("style", "control", None),
    ]
    assert found["rules"] == [{"alert": "drift", "calibrated": False, "baseline": None}]


def test_what_is_wrong_is_refused(settings: Path, tmp_path: Path) -> None:
    refused(f"No config at {tmp_path / 'none.yaml'}", "check", tmp_path / "none.yaml")
    settings.write_text("every: 5")
    refused("name at least one direction", "check", settings)
    settings.write_text(SETTINGS.replace("[style]", "[]"))
    refused("uses over_controls, which needs", "check", settings)


def test_a_test_message_over_each_channel_says_whether_it_arrives(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("has no channels to try", "check", settings, "--notify")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings.write_text(SETTINGS + "notify: [{webhook: HOOK}]")
    refused("HOOK is not set", "check", settings, "--notify")
    with hook() as made:
        monkeypatch.setenv("HOOK", made.url)
        assert told("check", settings, "--notify")["channels"] == [
            {"name": "webhook HOOK", "arrived": True, "error": None}
        ]
        made.answers = [404]
        result = call("check", settings, "--notify")
    assert result.exit_code == BAD_INPUT
    assert "was not sent: HTTP 404" in " ".join(result.output.split())
    assert TOKEN.split("/")[-1] not in result.output
