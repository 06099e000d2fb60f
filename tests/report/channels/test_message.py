import json

import pytest

from tests.support.receivers import an_alert
from weightwatch.report.channels.message import Message

NASTY = "<b>@everyone</b> <!channel> [x](http://a.b) `c`\x1b[2J\r\nBcc: d"


def test_the_json_is_the_alert_with_the_run_and_a_text() -> None:
    alert = an_alert()
    body = Message.of(alert, "fine-tune").body("json")
    assert {key: body[key] for key in alert.to_json()} == alert.to_json()
    assert body["run"] == "fine-tune"
    assert body["text"] == alert.describe()
    assert body["weightwatch"]


def test_names_are_shown_and_neither_mention_nor_format() -> None:
    message = Message.of(an_alert(NASTY), NASTY)
    slack, discord = message.body("slack"), message.body("discord")
    assert "&lt;!channel&gt;" in slack["text"]
    assert not {"<", ">"} & set(slack["text"])
    assert not slack["mrkdwn"]
    assert "\\@everyone" in discord["content"]
    assert "\\[x\\]\\(http\\://a.b\\)" in discord["content"]
    assert discord["allowed_mentions"] == {"parse": []}
    for shape in (slack["text"], discord["content"], message.subject, message.whole):
        assert shape.isprintable()
    assert json.loads(json.dumps(message.to_json()))["alert"] == NASTY


@pytest.mark.parametrize("letter", ["x", "*", "&"])
def test_long_texts_are_cut_to_what_the_services_take(letter: str) -> None:
    message = Message("run", letter * 9999, letter * 9999)
    discord = message.body("discord")["content"]
    assert 1990 < len(discord) <= 2000
    assert not discord.removesuffix("…").endswith("\\")
    assert len(message.body("slack")["text"].replace("&amp;", "&")) == 4000
    assert len(message.subject) == 200


def test_what_was_held_back_is_counted_and_named() -> None:
    alerts = [an_alert("a", 1), an_alert("b", 2), an_alert("a", 3)]
    summed = Message.held_back([Message.of(alert, "run") for alert in alerts], 20)
    assert summed.title == "3 more alerts"
    assert "at most 20 are sent in an hour: a firing (2), b firing. The newest: a (warning) at step 3" in summed.text
    assert "1 more alert was held back" in Message.held_back([Message("run", "a", "b")], 1).text
