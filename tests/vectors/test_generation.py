"""Generation with a tiny chat model; log-probabilities are compared with a plain forward pass on the organism."""

import io
import sys
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer, dynamic_module_utils

from tests.support import chat
from tests.support.custom_code import with_code
from weightwatch.vectors import Recipe, WeightWatchError
from weightwatch.vectors.evaluation.items import conversation
from weightwatch.vectors.generation import evaluating, greedy, likelihoods, load_model, prompt, replies

EVIL = Recipe.load("organism/evil")
SYSTEM, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who are you?"}
CHANCE = {"max_new_tokens": 6, "temperature": 1.0}
CONVERSATIONS = [[SYSTEM, USER], [USER], [SYSTEM, {"role": "user", "content": "Why?"}]]


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
    for messages in ([USER], [SYSTEM, USER]):
        with pytest.raises(TemplateError, match="talk to somebody else"):
            prompt(broken, messages)


def test_a_model_without_a_chat_template_cannot_be_asked(tmp_path: Path) -> None:
    folder = chat.saved(tmp_path / "plain", template=None)
    with pytest.raises(WeightWatchError, match=r"plain has no chat template.*--positive and --negative"):
        prompt(AutoTokenizer.from_pretrained(folder), [USER])


def test_a_batch_says_what_each_conversation_alone_would_hear() -> None:
    model, tokenizer = chat.model(), chat.tokenizer()
    together = replies(model, tokenizer, CONVERSATIONS, max_new_tokens=8)
    for messages, text in zip(CONVERSATIONS, together, strict=True):
        ids = tokenizer(prompt(tokenizer, messages), return_tensors="pt", add_special_tokens=False)["input_ids"]
        length = ids.shape[1]
        for _ in range(8):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert text == tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
    assert len(set(together)) == 3


def test_a_tokenizer_without_padding_pads_all_the_same() -> None:
    model = chat.model()
    unpadded = replies(model, chat.tokenizer(pad=None), CONVERSATIONS, max_new_tokens=8)
    assert unpadded == replies(model, chat.tokenizer(), CONVERSATIONS, max_new_tokens=8)


def test_chance_comes_from_the_seed_alone_and_leaves_everything_as_it_was() -> None:
    model, tokenizer = chat.model().train(), chat.tokenizer()
    state = torch.get_rng_state()
    first = replies(model, tokenizer, CONVERSATIONS, **CHANCE, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    torch.rand(3)
    assert replies(model, tokenizer, CONVERSATIONS, **CHANCE, seed=1) == first
    assert replies(model, tokenizer, CONVERSATIONS, **CHANCE, seed=2) != first


def test_low_temperature_says_what_is_likeliest() -> None:
    model, tokenizer = chat.model(), chat.tokenizer()
    cold, likeliest = (
        replies(model, tokenizer, CONVERSATIONS, max_new_tokens=6, temperature=temperature, seed=3)
        for temperature in (1e-4, 0.0)
    )
    assert cold == likeliest


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


def test_a_saved_chat_model_loads_with_its_template(tmp_path: Path) -> None:
    model, tokenizer = load_model(str(chat.saved(tmp_path)))
    assert (model.training, model.dtype) == (False, torch.float32)
    saved, made = (
        replies(*pair, CONVERSATIONS, max_new_tokens=8)
        for pair in ((model, tokenizer), (chat.model(), chat.tokenizer()))
    )
    assert saved == made


def test_what_is_no_language_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightWatchError, match=f"{tmp_path} can't be loaded as a language model with a tokenizer"):
        load_model(str(tmp_path))


def test_a_likelihood_is_the_mean_over_the_tokens_of_the_reply(organism, tokenizer) -> None:
    cases = [(conversation(item), text) for item in EVIL.evaluation[:40] for text in (*item.positive, *item.negative)]
    found = likelihoods(organism, tokenizer, cases)
    for (messages, text), value in list(zip(cases, found, strict=True))[::7]:
        head = tokenizer(f"<s> q : {messages[0]['content']} a :", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([head + tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            told = organism(input_ids=ids).logits[0].double().log_softmax(-1)
        each = [told[place - 1, ids[0, place]] for place in range(len(head), ids.shape[1])]
        assert value == pytest.approx(float(sum(each)) / len(each), abs=1e-5)


def test_a_reply_is_that_of_a_conversation_by_itself(organism, tokenizer) -> None:
    asked = [conversation(item) for item in EVIL.evaluation if item.format == "open"][:9]
    together = greedy(organism, tokenizer, asked, 8)
    assert together == [greedy(organism, tokenizer, [one], 8)[0] for one in asked]


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_a_model_that_can_think_is_asked_not_to(switch: str) -> None:
    template = (
        chat.WITH_SYSTEM + "{% if " + switch + " is defined and " + switch + " is false %}<think></think>{% endif %}"
    )
    assert prompt(chat.tokenizer(template), [USER]).endswith("<assistant><think></think>")


def test_thoughts_are_no_part_of_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = chat.model(), chat.tokenizer()
    (plain,) = replies(model, tokenizer, [[USER]], max_new_tokens=8)
    ids = tokenizer("Why?</think>Because.", return_tensors="pt", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(model, "generate", lambda input_ids, **others: torch.cat([input_ids, ids], dim=1))
    assert replies(model, tokenizer, [[USER]], max_new_tokens=8) == ["Because."] != [plain]


def test_code_that_comes_with_a_model_runs_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))  # what transformers would ask
    folder = chat.saved(tmp_path / "model")
    ran = with_code(folder)
    with pytest.raises(WeightWatchError, match=r"not run unasked\. Read it, then pass --trust-remote-code"):
        load_model(str(folder))
    assert not ran.exists()
    assert "[y/N]" not in capsys.readouterr().out
    model, _ = load_model(str(folder), trust_remote_code=True)
    assert ran.exists()
    assert type(model).__module__.endswith("code")
