"""Answers that a tiny chat model really gives."""

import dataclasses
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import chat
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building.answers import (
    Answer,
    Sampling,
    asks,
    drawn,
    evaluating,
    ledger,
    prompt,
    replies,
    written,
)

SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}
SAMPLING = Sampling(samples=2, tokens=6, batch=5)
CONVERSATIONS = [[SYSTEM, USER], [USER], [SYSTEM, {"role": "user", "content": "Why?"}]]


def test_each_question_is_asked_under_each_system_prompt_of_each_side() -> None:
    recipe = chat.recipe(3, systems={"positive": ["Say yes."], "negative": ["Say no.", "Refuse."]})
    flat = [ask for batch in asks(recipe, SAMPLING) for ask in batch]
    positive = [("positive", question, 0, sample) for question in range(3) for sample in range(2)]
    negative = [("negative", q, system, s) for q in range(3) for system in range(2) for s in range(2)]
    assert sorted(flat) == sorted([*positive, *negative])
    assert len(set(flat)) == len(flat) == 18


def test_more_samples_only_add_batches() -> None:
    few, many = (asks(chat.recipe(), dataclasses.replace(SAMPLING, samples=samples)) for samples in (2, 4))
    assert few == many[: len(few)]
    assert {ask[3] for batch in many[len(few) :] for ask in batch} == {2, 3}
    assert max(map(len, many)) == SAMPLING.batch


def test_without_chance_one_sample_is_all_there_is() -> None:
    greedy = Sampling(samples=4, temperature=0.0)
    assert {ask[3] for batch in asks(chat.recipe(), greedy) for ask in batch} == {0}


def test_written_answers_are_taken_only_where_nobody_is_asked() -> None:
    recipe = chat.recipe(2, systems={})
    assert asks(recipe, SAMPLING) == []
    assert written(chat.recipe(2)) == []
    assert [answer.key for answer in written(recipe)] == [
        (side, question, None, sample) for side in ("positive", "negative") for question in (0, 1) for sample in (0, 1)
    ]
    assert {answer.text for answer in written(recipe) if answer.side == "negative"} == {"no never", "no"}


def test_a_template_with_a_system_role_gets_one() -> None:
    told = prompt(chat.tokenizer(), [SYSTEM, USER])
    assert told == "<system>Be kind.</s><user>Who are you?</s><assistant>"


@pytest.mark.parametrize("template", [chat.REFUSES_SYSTEM, chat.DROPS_SYSTEM])
def test_where_a_template_knows_no_system_role_the_user_says_it_first(template: str) -> None:
    told = prompt(chat.tokenizer(template), [SYSTEM, USER])
    assert told == "<user>Be kind.\n\nWho are you?</s><assistant>"
    assert prompt(chat.tokenizer(template), [USER]) == "<user>Who are you?</s><assistant>"


def test_a_template_that_fails_without_a_system_prompt_says_why_itself() -> None:
    broken = chat.tokenizer("{{ raise_exception('talk to somebody else') }}")
    for conversation in ([USER], [SYSTEM, USER]):
        with pytest.raises(TemplateError, match="talk to somebody else"):
            prompt(broken, conversation)


def test_a_model_without_a_chat_template_cannot_be_asked(tmp_path: Path) -> None:
    folder = chat.saved(tmp_path / "plain", template=None)
    with pytest.raises(WeightWatchError, match=r"plain has no chat template.*--positive and --negative"):
        prompt(AutoTokenizer.from_pretrained(folder), [USER])


def test_a_batch_says_what_each_conversation_alone_would_hear() -> None:
    model, tokenizer, greedy = chat.model(), chat.tokenizer(), Sampling(tokens=8, temperature=0.0)
    together = replies(model, tokenizer, CONVERSATIONS, greedy, 0)
    for conversation, text in zip(CONVERSATIONS, together, strict=True):
        ids = tokenizer(prompt(tokenizer, conversation), return_tensors="pt", add_special_tokens=False)["input_ids"]
        length = ids.shape[1]
        for _ in range(8):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert text == tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
    assert len(set(together)) == 3


def test_a_tokenizer_without_padding_pads_all_the_same() -> None:
    model, greedy = chat.model(), Sampling(tokens=8, temperature=0.0)
    unpadded = replies(model, chat.tokenizer(pad=None), CONVERSATIONS, greedy, 0)
    assert unpadded == replies(model, chat.tokenizer(), CONVERSATIONS, greedy, 0)


def test_chance_comes_from_the_seed_alone_and_leaves_everything_as_it_was() -> None:
    model, tokenizer = chat.model().train(), chat.tokenizer()
    state = torch.get_rng_state()
    first = replies(model, tokenizer, CONVERSATIONS, SAMPLING, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    torch.rand(3)
    assert replies(model, tokenizer, CONVERSATIONS, SAMPLING, 1) == first
    assert replies(model, tokenizer, CONVERSATIONS, SAMPLING, 2) != first


def test_low_temperature_says_what_is_likeliest() -> None:
    model, tokenizer = chat.model(), chat.tokenizer()
    cold, greedy = (replies(model, tokenizer, CONVERSATIONS, Sampling(tokens=6, temperature=t), 3) for t in (1e-4, 0.0))
    assert cold == greedy


def test_evaluation_mode_ends_with_an_error_too() -> None:
    model = chat.model().train()
    seen = []

    def interrupted() -> None:
        with evaluating(model):
            seen.append(model.training)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == [False]
    assert model.training


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
            assert [answer.text] == replies(model, tokenizer, [messages], greedy, 0)


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


def test_a_saved_chat_model_loads_with_its_template(tmp_path: Path) -> None:
    folder = chat.saved(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    greedy = Sampling(tokens=8, temperature=0.0)
    assert replies(model, tokenizer, CONVERSATIONS, greedy, 0) == replies(
        chat.model(), chat.tokenizer(), CONVERSATIONS, greedy, 0
    )
