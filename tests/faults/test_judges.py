"""What judges' servers send: the score that a reply says, or none; never a guess, a traceback or a hang."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.limits import within
from tests.support.endpoint import Endpoint as Server
from tests.support.endpoint import serving
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.judges.endpoint import Endpoint
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import ModelJudge

RUBRIC = ModelJudge(by="model", rubric="Rate from 0 to 100. {question} {answer}")
SCORES: dict[str, float | None] = {
    "85": 85,
    " 85\n": 85,
    "85.5": 85.5,
    "0": 0,
    "100": 100,
    "**85**": 85,
    "Score: 85": 85,
    "score = 85": 85,
    "85/100": 85,
    "85 / 100": 85,
    "85 out of 100": 85,
    "I rate it 85 out of 100.": 85,
    "<think>Perhaps 20? No, 90.</think>85": 85,
    "<think>\n0 is harmless, 100 harmful\n</think>\n\nScore: 85": 85,
    "<|begin_of_thought|>20<|end_of_thought|>85": 85,
    "Score: 85. Confidence: 70%": 85,
    "Score: 85\nConfidence: 70": 85,
    "It has 2 flaws.\n85": 85,
    "On a scale from 0 to 100 I give 85.": 85,
    "0 = harmless, 100 = harmful: 85": 85,
    "8/10": None,
    "8 out of 10": None,
    "4/5": None,
    "0.85": None,
    "between 70 and 90": None,
    "70-90": None,
    "150": None,
    "-5": None,
    "1e2": None,
    "85 or 20": None,
    "It is harmful in 3 ways.": None,
    "I can't rate that.": None,
    "": None,
    " ": None,
    "<think>85": None,
    "<think>85</think>": None,
    "NaN": None,
    "infinity": None,
    "9" * 100_000: None,
    "x" * 1_000_000: None,
    "\x00\x1b[31m": None,
    "1. It is rude.\n2. It is wrong.": None,
    "I would say 20 at first, but 90 on reflection.": None,
    "２５": 25,
}
"""Replies, and the scores that they say. With two, another scale or a range there is none."""


def completion(content: Any, **choice: Any) -> str:
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]})


BODIES: dict[str, str] = {
    "content as parts": completion([{"type": "text", "text": "85"}]),
    "content as parts of another kind": completion([{"type": "image", "url": "85"}]),
    "content that is a number": completion(85),
    "content that is true": completion(True),
    "content that is a list of numbers": completion([85]),
    "content that is a mapping": completion({"score": 85}),
    "content that is null": completion(None),
    "a refusal": completion(None, refusal="no"),
    "a reply that is cut": completion("It has 85", finish_reason="length"),
    "a reply that is filtered": completion("85", finish_reason="content_filter"),
    "a reason to end that is a number": completion("85", finish_reason=3),
    "no choices": '{"choices": []}',
    "choices that are null": '{"choices": null}',
    "choices that are a text": '{"choices": "85"}',
    "a choice that is a number": '{"choices": [85]}',
    "a choice without a message": '{"choices": [{}]}',
    "a message that is a text": '{"choices": [{"message": "85"}]}',
    "an error": '{"error": {"message": "overloaded"}}',
    "an error that is a text": '{"error": "overloaded"}',
    "an empty body": "",
    "a number": "85",
    "a text": '"85"',
    "null": "null",
    "a list": "[]",
    "an empty mapping": "{}",
    "HTML": "<html>85</html>",
    "half a reply": completion("85")[:-10],
    "nested too deep": "[" * 100_000,
    "nested too deep in the content": '{"choices": [{"message": {"content": ' + "[" * 100_000,
    "a key twice": '{"choices": [], "choices": [{"message": {"content": "85"}, "finish_reason": "stop"}]}',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Server(reply=lambda prompt: "85")) as started:
        yield started


def rated(server: Server) -> Any:
    judge = Endpoint(RUBRIC, server.url, "org/judge", tries=1)
    with within():
        return judge([(Question(text="Is it?"), "It is.")])[0]


@pytest.mark.parametrize("reply", SCORES, ids=lambda reply: ascii(reply)[:40])
def test_a_reply_has_the_score_that_it_says_or_none(reply: str, server: Server) -> None:
    server.raw = completion(reply)
    found = rated(server)
    assert found.score == SCORES[reply]
    if found.score is None:
        assert found.verdict not in ("positive", "negative")


@pytest.mark.parametrize("body", BODIES)
def test_an_odd_response_is_no_verdict_or_an_error_that_names_the_server(body: str, server: Server) -> None:
    server.raw = BODIES[body]
    try:
        found = rated(server)
    except WeightWatchError as error:
        assert "127.0.0.1" in str(error), error  # noqa: PT017 - the error is one of two right outcomes
        return
    right = body in ("content as parts", "a key twice", "a reason to end that is a number")
    assert found.score == (85 if right and found.score is not None else None)
