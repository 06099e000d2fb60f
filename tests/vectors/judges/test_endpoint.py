"""A judge behind an endpoint: a real server on loopback."""

import re
from collections.abc import Iterator

import pytest

from tests.support.endpoint import MODEL, Endpoint, serving
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.judges.endpoint import KEY
from weightwatch.vectors.judges.endpoint import Endpoint as Judge
from weightwatch.vectors.judges.judge import Judgement
from weightwatch.vectors.recipes.questions import Question
from weightwatch.vectors.recipes.verdicts import ModelJudge

RUBRIC = ModelJudge(by="model", rubric="Rate {answer} to {question} from 0 to 100.", keep_positive=70, keep_negative=30)
QUESTION = Question(text="Is it?")


def cases(*answers: str) -> list[tuple[Question, str]]:
    return [(QUESTION, answer) for answer in answers]


def repeated(prompt: str) -> str:
    """What stands between "Rate" and "to" is what the judge says."""
    return re.fullmatch(r"Rate (.*) to Is it\? from 0 to 100\.", prompt, re.DOTALL)[1]


def place(server: Endpoint) -> str:
    return server.url.removesuffix("/v1")


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with serving(Endpoint(repeated)) as endpoint:
        yield endpoint


def test_an_endpoint_judges_by_its_numbers_in_order(server: Endpoint) -> None:
    judge = Judge(RUBRIC, server.url)
    said = ["70", "69.9", "30", "I'd say 95.", "none", "150", ""]
    assert judge(cases(*said)) == [
        Judgement("positive", 70.0, "70"),
        Judgement("unclear", 69.9, "69.9"),
        Judgement("negative", 30.0, "30"),
        Judgement("positive", 95.0, "I'd say 95."),
        Judgement("unjudged", None, "none"),
        Judgement("unjudged", None, "150"),
        Judgement("unjudged", None, ""),
    ]
    assert judge.name == judge.identity == MODEL


def test_an_endpoint_is_asked_the_rubric_without_chance(server: Endpoint) -> None:
    Judge(RUBRIC, server.url)(cases("{5}"))
    (body,) = server.asked
    assert body["model"] == MODEL
    assert body["messages"] == [{"role": "user", "content": "Rate {5} to Is it? from 0 to 100."}]
    assert body["temperature"] == 0.0


@pytest.mark.parametrize("key", [None, "", "sk-of-mine", " sk-of-mine\n"])
def test_a_key_is_taken_from_the_environment(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(KEY, key)
    Judge(RUBRIC, server.url)(cases("80"))
    assert server.keys == {"Bearer sk-of-mine" if key else None}


def test_a_reply_cut_short_by_the_endpoint_is_not_judged(server: Endpoint) -> None:
    server.finish = "length"
    (judgement,) = Judge(RUBRIC, server.url)(cases("It has 2 flaws, perhaps 90, but"))
    assert judgement.verdict == "unjudged"
    assert judgement.score is None


def test_an_endpoint_that_fails_for_a_while_is_asked_again(server: Endpoint) -> None:
    judge = Judge(RUBRIC, server.url)
    server.failures = 2
    assert [judgement.verdict for judgement in judge(cases("80"))] == ["positive"]
    assert server.failed == 2


def test_an_endpoint_that_goes_on_failing_is_named(server: Endpoint) -> None:
    judge = Judge(RUBRIC, server.url)
    server.failures = 1000
    with pytest.raises(WeightWatchError, match=rf"The judge at {place(server)} does not answer.*500.*are saved"):
        judge(cases("80"))
    assert server.failed == 5


def test_a_closed_port_is_named() -> None:
    with serving(Endpoint(repeated)) as endpoint:
        judge = Judge(RUBRIC, endpoint.url, tries=1)
    for attempt in (lambda: Judge(RUBRIC, endpoint.url, tries=1), lambda: judge(cases("80"))):
        with pytest.raises(
            WeightWatchError, match=rf"The judge at {place(endpoint)} does not answer.*Start it, or check"
        ):
            attempt()


def test_a_model_that_the_endpoint_does_not_serve_is_an_error_at_once(server: Endpoint) -> None:
    judge = Judge(RUBRIC, server.url, "org/other")
    with pytest.raises(WeightWatchError, match=r"The model org/other does not exist.*--judge-model"):
        judge(cases("80"))
    assert server.asked == []


@pytest.mark.parametrize("model", [None, MODEL])
@pytest.mark.parametrize("raw", ["<html>Welcome</html>", "{oops", "[]", '{"data": [], "choices": []}'])
def test_an_address_where_something_else_answers_is_named(server: Endpoint, raw: str, model: str | None) -> None:
    server.raw = raw
    with pytest.raises(WeightWatchError, match=rf"The server at {place(server)} is not an OpenAI-comp.*ends in /v1"):
        Judge(RUBRIC, server.url, model)(cases("80"))


@pytest.mark.parametrize("name", ["max_tokens", "temperature"])
@pytest.mark.parametrize("told", ["param", "message"])
def test_a_model_that_refuses_a_parameter_is_asked_without_it(server: Endpoint, name: str, told: str) -> None:
    server.refuse = lambda body: {"message": "no", told: f"Unsupported parameter: '{name}'."} if name in body else None
    judge = Judge(RUBRIC, server.url)
    assert [each.verdict for each in judge(cases("80", "10"))] == ["positive", "negative"]
    assert all(name not in body for body in server.asked)
    assert all(("max_completion_tokens" in body) == (name == "max_tokens") for body in server.asked)


@pytest.mark.parametrize("status", [400, 403, 422])
def test_an_answer_that_is_refused_has_no_verdict_and_the_others_have(server: Endpoint, status: int) -> None:
    filtered = {"message": "The temperature of this was flagged by the content filter", "param": "prompt"}
    server.status, server.refuse = status, lambda body: filtered if "13" in body["messages"][0]["content"] else None
    refused, judged = Judge(RUBRIC, server.url)(cases("13", "80"))
    assert refused.verdict == "unjudged"
    assert "content filter" in refused.said
    assert judged == Judgement("positive", 80.0, "80")
    assert server.asked[0]["temperature"] == 0.0


def test_a_refusal_with_status_200_is_one_too(server: Endpoint) -> None:
    server.raw = '{"error": {"code": 403, "message": "flagged"}}'
    assert Judge(RUBRIC, server.url, MODEL)(cases("80"))[0].verdict == "unjudged"


def test_what_the_filter_of_the_endpoint_stopped_is_not_judged(server: Endpoint) -> None:
    server.finish = "content_filter"
    assert Judge(RUBRIC, server.url)(cases("80"))[0].verdict == "unjudged"


def test_a_reply_in_parts_is_read_without_its_thoughts(server: Endpoint) -> None:
    server.reply = lambda prompt: [{"type": "reasoning", "text": "20"}, {"type": "text", "text": "85"}]
    assert Judge(RUBRIC, server.url)(cases("x")) == [Judgement("positive", 85.0, "85")]


@pytest.mark.parametrize("content", [85, {"a": 1}, [3]])
def test_a_reply_that_is_no_text_is_an_error(server: Endpoint, content: object) -> None:
    server.reply = lambda prompt: content
    with pytest.raises(WeightWatchError, match="is not an OpenAI-compatible endpoint"):
        Judge(RUBRIC, server.url)(cases("x"))


def test_a_reply_that_is_nested_without_end_is_an_error(server: Endpoint) -> None:
    server.raw = "[" * 100_000 + "]" * 100_000
    with pytest.raises(WeightWatchError, match="is not an OpenAI-compatible endpoint"):
        Judge(RUBRIC, server.url, MODEL)(cases("x"))


def test_a_key_that_the_server_repeats_is_not_kept(server: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-of-mine")
    server.reply = lambda prompt: "85\nYour key is sk-of-mine."
    assert Judge(RUBRIC, server.url)(cases("x"))[0].said == "85\nYour key is ***."
    server.refuse = lambda body: {"message": "sk-of-mine may not"}
    assert "sk-of-mine" not in Judge(RUBRIC, server.url)(cases("x"))[0].said


@pytest.mark.parametrize("form", ["http://alice:PASSW0RD@{}", "http://{}?api_key=PASSW0RD"])
def test_a_password_in_the_address_is_used_and_not_repeated(server: Endpoint, form: str) -> None:
    judge = Judge(RUBRIC, form.format(server.url.removeprefix("http://")))
    assert judge(cases("80"))[0].verdict == "positive"
    assert "PASSW0RD" not in judge.name + judge.identity
    server.failures = 1000
    with pytest.raises(WeightWatchError) as caught:
        judge(cases("80"))
    assert "PASSW0RD" not in str(caught.value)
