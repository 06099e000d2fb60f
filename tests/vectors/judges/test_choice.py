"""Which judge a name stands for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import chat
from tests.support.endpoint import MODEL, Endpoint, serving
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.judges import classifier, endpoint
from weightwatch.vectors.judges.choice import RULE, chosen, chosen_if_any
from weightwatch.vectors.judges.judge import Rule

RUBRIC = {"by": "model", "rubric": "Rate {answer} to {question}."}


@pytest.fixture
def server() -> Iterator[Endpoint]:
    with serving(Endpoint(lambda prompt: "80")) as served:
        yield served


def test_a_judge_that_is_neither_address_nor_folder_is_an_error(tmp_path: Path) -> None:
    recipe = chat.recipe(judge=RUBRIC)
    with pytest.raises(WeightWatchError, match=r"localhost:8000/v1 is not a judge: neither the address"):
        chosen(recipe, "localhost:8000/v1")
    with pytest.raises(WeightWatchError, match="none is not a judge: neither the address of an endpoint nor a chat"):
        chosen(recipe, str(tmp_path / "none"))


def test_the_judge_that_is_named_is_chosen(tmp_path: Path, server: Endpoint) -> None:
    recipe = chat.recipe(judge=RUBRIC)
    assert isinstance(chosen(recipe, server.url), endpoint.Endpoint)
    assert chosen(recipe, server.url).name == MODEL
    assert chosen(recipe, server.url, "org/other").name == "org/other"
    assert isinstance(chosen(recipe, str(chat.classifier(tmp_path, None))), classifier.Classifier)


@pytest.mark.parametrize("address", ["ftp://alice:PASSW0RD@host/v1", "alice:PASSW0RD@host/v1", "http://", "https://@"])
def test_an_address_that_is_none_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(WeightWatchError, match="The judge's address") as caught:
        chosen(chat.recipe(judge=RUBRIC), address)
    assert "PASSW0RD" not in str(caught.value)


def test_a_rule_and_a_rubric_cannot_stand_in_for_each_other(server: Endpoint) -> None:
    with pytest.raises(WeightWatchError, match=r"'agreeing' has no rule of its own.*Pass --judge"):
        chosen(chat.recipe(judge=RUBRIC))
    with pytest.raises(WeightWatchError, match=r"'agreeing' has its own rule.*Leave --judge out"):
        chosen(chat.recipe(), server.url)


def test_a_recipe_without_a_rule_may_go_without_a_judge(server: Endpoint) -> None:
    rated = chat.recipe(judge=RUBRIC)
    assert chosen_if_any(rated, RULE, None) is None
    assert isinstance(chosen_if_any(rated, server.url, None), endpoint.Endpoint)
    assert isinstance(chosen_if_any(chat.recipe(), RULE, None), Rule)
