"""Answers that a tiny chat model really gives."""

import dataclasses
from pathlib import Path

import pytest

from tests.support import chat
from weightwatch.vectors.building.answers import Answer, Sampling, asks, drawn, ledger, written
from weightwatch.vectors.generation import replies

SAMPLING = Sampling(num_samples=2, max_new_tokens=6, batch_size=5)


def test_each_question_is_asked_under_each_system_prompt_of_each_side() -> None:
    recipe = chat.recipe(3, systems={"positive": ["Say yes."], "negative": ["Say no.", "Refuse."]})
    flat = [ask for batch in asks(recipe, SAMPLING) for ask in batch]
    positive = [("positive", question, 0, sample) for question in range(3) for sample in range(2)]
    negative = [("negative", q, system, s) for q in range(3) for system in range(2) for s in range(2)]
    assert sorted(flat) == sorted([*positive, *negative])
    assert len(set(flat)) == len(flat) == 18


def test_more_samples_only_add_batches() -> None:
    few, many = (asks(chat.recipe(), dataclasses.replace(SAMPLING, num_samples=samples)) for samples in (2, 4))
    assert few == many[: len(few)]
    assert {ask[3] for batch in many[len(few) :] for ask in batch} == {2, 3}
    assert max(map(len, many)) == SAMPLING.batch_size


def test_without_chance_one_sample_is_all_there_is() -> None:
    greedy = Sampling(num_samples=4, temperature=0.0)
    assert {ask[3] for batch in asks(chat.recipe(), greedy) for ask in batch} == {0}


def test_written_answers_are_taken_only_where_nobody_is_asked() -> None:
    recipe = chat.recipe(2, systems={})
    assert asks(recipe, SAMPLING) == []
    assert written(chat.recipe(2)) == []
    assert [answer.key for answer in written(recipe)] == [
        (side, question, None, sample) for side in ("positive", "negative") for question in (0, 1) for sample in (0, 1)
    ]
    assert {answer.text for answer in written(recipe) if answer.side == "negative"} == {"no never", "no"}


@pytest.fixture(scope="module")
def all_drawn() -> list[Answer]:
    recipe = chat.recipe()
    batches = drawn(recipe, chat.model(), chat.tokenizer(), SAMPLING, asks(recipe, SAMPLING))
    return [answer for batch in batches for answer in batch]


def test_every_ask_is_answered_under_its_own_prompt(all_drawn: list[Answer]) -> None:
    recipe = chat.recipe()
    assert [answer.key for answer in all_drawn] == [ask for batch in asks(recipe, SAMPLING) for ask in batch]
    greedy = dataclasses.replace(SAMPLING, temperature=0.0)
    model, tokenizer = chat.model(), chat.tokenizer()
    for batch in drawn(recipe, model, tokenizer, greedy, asks(recipe, greedy)):
        for answer in batch:
            system = getattr(recipe.systems, answer.side)[answer.system]
            user = recipe.questions.building[answer.question].text
            messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            assert [answer.text] == replies(model, tokenizer, [messages], max_new_tokens=6)


def test_a_batch_is_drawn_alike_whatever_was_drawn_before_it(all_drawn: list[Answer]) -> None:
    recipe = chat.recipe()
    last = asks(recipe, SAMPLING)[-1]
    (alone,) = drawn(recipe, chat.model(), chat.tokenizer(), SAMPLING, [last])
    assert alone == all_drawn[-len(last) :]


def test_samples_and_seeds_differ(all_drawn: list[Answer]) -> None:
    recipe = chat.recipe()
    half = len(all_drawn) // 2
    texts = [answer.text for answer in all_drawn]
    assert texts[:half] != texts[half:]
    other = dataclasses.replace(SAMPLING, seed=1)
    (batch,) = drawn(recipe, chat.model(), chat.tokenizer(), other, asks(recipe, other)[:1])
    assert [answer.text for answer in batch] != texts[: len(batch)]


def test_answers_come_back_from_their_file(tmp_path: Path, all_drawn: list[Answer]) -> None:
    kept = ledger(tmp_path / "answers.jsonl")
    kept.extend([*all_drawn, *written(chat.recipe(2, systems={}))])
    assert list(kept) == [*all_drawn, *written(chat.recipe(2, systems={}))]
