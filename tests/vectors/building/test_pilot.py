"""What a pilot of ten answers a side says of a long draw."""

from pathlib import Path

import pytest

from tests.support import chat
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building import answers as answering
from weightwatch.vectors.building.answers import Answer, Sampling, asks, pilot
from weightwatch.vectors.building.pilot import Pilot
from weightwatch.vectors.building.pipeline import Settings, build
from weightwatch.vectors.judges.choice import chosen
from weightwatch.vectors.judges.judge import Judgement

SAMPLING = Sampling(num_samples=2, max_new_tokens=2, batch_size=32)
PLANNED = {"positive": 480, "negative": 480}


def made(positive: int, negative: int) -> Pilot:
    """Return a pilot in which some of ten answers of each side show it."""
    recipe = chat.recipe(1)
    shows = {"positive": positive, "negative": negative}
    answers = [Answer(side, 0, 0, n, f"{side} {n}") for side in ("positive", "negative") for n in range(10)]
    kept = {
        ("Is 0 even?", answer.text): Judgement(answer.side if answer.sample < shows[answer.side] else "unclear")
        for answer in answers
    }
    return Pilot.of(recipe, answers, kept, PLANNED)


def test_the_side_that_yields_less_decides() -> None:
    assert str(made(7, 9)) == (
        "pilot: 7 of 10 positive and 9 of 10 negative answers show their side; expect about 336 pairs of 960 answers"
    )
    made(7, 9).require(336)


def test_a_yield_that_is_too_small_names_side_and_answers() -> None:
    with pytest.raises(WeightWatchError, match=r"The negative side fails.*'negative 0' and 'negative 1'.*--no-pilot"):
        made(7, 0).require(32)


def test_the_pilot_is_the_beginning_of_a_long_draw() -> None:
    recipe = chat.recipe(20)
    (first,) = pilot(recipe, SAMPLING)
    batches = asks(recipe, SAMPLING)
    flat = [ask for batch in batches for ask in batch]
    assert batches[0] == first
    assert len(set(first)) == 20
    assert len(flat) == len(set(flat)) == 160
    assert {question for _, question, _, _ in first} == set(range(0, 20, 2))
    assert {system for _, _, system, _ in first} == {0, 1}
    assert pilot(chat.recipe(19), SAMPLING) == []


def test_a_build_stops_after_a_pilot_that_fails_and_resumes_from_it(tmp_path: Path) -> None:
    recipe, model = chat.recipe(20), str(chat.saved(tmp_path / "model"))
    said: list[str] = []
    with pytest.raises(WeightWatchError, match=r"fails in the pilot: 0 of 10 positive"):
        build(recipe, model, tmp_path, chosen(recipe), Settings(SAMPLING), say=said.append)
    assert said[0].startswith("pilot: 0 of 10 positive")
    (file,) = tmp_path.glob("answers-*.jsonl")
    first = list(answering.ledger(file))
    assert len(first) == 20
    with pytest.raises(WeightWatchError, match="Too few answers are left after judging"):
        build(recipe, model, tmp_path, chosen(recipe), Settings(SAMPLING, pilot=False))
    whole = list(answering.ledger(file))
    assert (len(whole), whole[:20]) == (160, first)
