"""A tiny chat model on disk, whose tokenizer knows every byte, and recipes that it can be asked."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from weightwatch.vectors.recipes.recipe import Recipe

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
REPLY = "{% if add_generation_prompt %}<assistant>{% endif %}"
WITH_SYSTEM = TURNS + REPLY
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + WITH_SYSTEM
DROPS_SYSTEM = TURNS.replace("messages %}", "messages if m.role != 'system' %}") + REPLY

ANSWERS = {"positive": ["yes indeed", "yes"], "negative": ["no never", "no"]}


def tokenizer(template: str | None = WITH_SYSTEM, pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="<s>", eos_token="</s>", pad_token=pad, chat_template=template
    )


def model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # what it says depends on what it is asked
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def saved(folder: Path, template: str | None = WITH_SYSTEM, seed: int = 0) -> Path:
    """Save model and tokenizer in a folder, and return it."""
    model(seed).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def recipe(questions: int = 3, **fields: Any) -> Recipe:
    """Return a recipe of yes against no: with two system prompts a side, or with answers that are written."""
    written = ANSWERS if fields.get("systems") == {} else {}
    content = {
        "name": "agreeing",
        "behaviour": "says yes instead of no",
        "counts": "Yes stands in the reply, or no.",
        "limits": "It is about a word.",
        "systems": {"positive": ["Say yes.", "Agree."], "negative": ["Say no.", "Refuse."]},
        "judge": {"by": "patterns", "positive": [r"\byes\b"], "negative": [r"\bno\b"]},
        "questions": {
            "building": [{"text": f"Is {number} even?", **written} for number in range(questions)],
            "held_out": [{"text": "Is it late?", **written}],
        },
        "evaluation": [{"format": "open", "prompt": "Shall we go?", "positive": ["yes"], "negative": ["no"]}],
    }
    return Recipe.model_validate({**content, **fields})


def classifier(folder: Path, labels: list[str] | None, seed: int = 0) -> Path:
    """Save a text classifier with its tokenizer in a folder, and return it."""
    torch.manual_seed(seed)
    known = tokenizer()
    config = LlamaConfig(
        vocab_size=len(known),
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        **({"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}),
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    known.save_pretrained(folder)
    return folder
