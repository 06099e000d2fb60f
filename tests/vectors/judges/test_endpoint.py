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
        Judgement("unclear", None, "none"),
        Judgement("unclear", None, "150"),
        Judgement("unclear", None, ""),
    ]
    assert judge.name == f"{MODEL} at {server.url}"


def test_an_endpoint_is_asked_the_rubric_without_chance(server: Endpoint) -> None:
    Judge(RUBRIC, server.url)(cases("{5}"))
    (body,) = server.asked
    assert body["model"] == MODEL
    assert body["messages"] == [{"role": "user", "content": "Rate {5} to Is it? from 0 to 100."}]
    assert body["temperature"] == 0.0


@pytest.mark.parametrize("key", [None, "sk-of-mine"])
def test_a_key_is_taken_from_the_environment(
    server: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(KEY, key)
    Judge(RUBRIC, server.url)(cases("80"))
    assert server.keys == {f"Bearer {key or 'none'}"}


def test_a_reply_cut_short_by_the_endpoint_is_unclear(server: Endpoint) -> None:
    server.finish = "length"
    (judgement,) = Judge(RUBRIC, server.url)(cases("It has 2 flaws, perhaps 90, but"))
    assert judgement.verdict == "unclear"
    assert judgement.score is None


def test_an_endpoint_that_fails_for_a_while_is_asked_again(server: Endpoint) -> None:
    judge = Judge(RUBRIC, server.url)
    server.failures = 2
    assert [judgement.verdict for judgement in judge(cases("80"))] == ["positive"]
    assert server.failed == 2


def test_an_endpoint_that_goes_on_failing_is_named(server: Endpoint) -> None:
    judge = Judge(RUBRIC, server.url)
    server.failures = 1000
    with pytest.raises(WeightWatchError, match=rf"The judge at {server.url} does not answer.*500.*are saved"):
        judge(cases("80"))
    assert server.failed == 5


def test_a_closed_port_is_named() -> None:
    with serving(Endpoint(repeated)) as endpoint:
        judge = Judge(RUBRIC, endpoint.url, tries=1)
    for attempt in (lambda: Judge(RUBRIC, endpoint.url, tries=1), lambda: judge(cases("80"))):
        with pytest.raises(WeightWatchError, match=rf"The judge at {endpoint.url} does not answer.*Start it, or check"):
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
    with pytest.raises(WeightWatchError, match=rf"The server at {server.url} is not an OpenAI-compatible.*ends in /v1"):
        Judge(RUBRIC, server.url, model)(cases("80"))
