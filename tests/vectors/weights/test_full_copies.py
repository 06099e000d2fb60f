"""``modules_to_save`` and biases beside LoRA factors, compared with the plain state dicts of PEFT's own merge."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import oracle as slow
from tests.support.models import lora, move, tiny_llama
from weightwatch.vectors import Direction, LowRank, WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.full_copies import changes, starts
from weightwatch.vectors.weights.peft_adapter import PeftAdapter

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = ["embed_tokens", "lm_head"]
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "a head": ({"tie_word_embeddings": False}, {"modules_to_save": ["lm_head"]}, {HEAD}),
    "embeddings and a head": ({"tie_word_embeddings": False}, {"modules_to_save": BOTH}, {EMBEDDING, HEAD}),
    "a tied head": ({}, {"modules_to_save": ["lm_head"]}, {HEAD}),
    "tied embeddings and head, untied by their copies": ({}, {"modules_to_save": BOTH}, {EMBEDDING, HEAD}),
    "tied embeddings and head that stay tied": (
        {},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {EMBEDDING},
    ),
    "a norm": ({}, {"modules_to_save": ["model.norm"]}, {"model.norm.weight"}),
    "biases": (
        {"attention_bias": True},
        {"bias": "lora_only"},
        {f"model.layers.{i}.self_attn.q_proj.bias" for i in (0, 1)},
    ),
}


def adapter(folder: Path, base: Any, seed: int, **settings: Any) -> dict[str, Tensor]:
    """Save a moved adapter; return the change of each weight of the merged model, in fp64."""
    model = lora(copy.deepcopy(base), seed=seed, target_modules=["q_proj"], **settings)
    move(model, seed + 10)
    model.save_pretrained(folder)
    start = base.state_dict()
    return {name: value - start[name].double() for name, value in slow.merged(model).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_full_copies_count_as_the_difference_of_their_values(kind: str, tmp_path: Path) -> None:
    config, settings, names = KINDS[kind]
    base = tiny_llama(**config)
    base.save_pretrained(tmp_path / "base")
    wanted = [adapter(tmp_path / str(seed), base, seed, **settings) for seed in (1, 2)]
    read = PeftAdapter.read(tmp_path / "1", Checkpoint(tmp_path / "base"))
    assert set(starts(read, read.tensors())) == names
    tau = Direction.from_fine_tune(tmp_path / "1", tmp_path / "base", name="run")
    w = Direction.from_contrast(tmp_path / "1", tmp_path / "2", base=tmp_path / "base", name="evil")
    difference = {name: value - wanted[1][name] for name, value in wanted[0].items()}
    for found, plain in ((slow.dense(tau), wanted[0]), (slow.dense(w), difference)):
        moved = {name for name, value in plain.items() if value.norm() > 1e-6}
        assert set(found) == moved - ({HEAD} if names == {EMBEDDING} else set())  # tied: counted once
        for name, change in found.items():
            torch.testing.assert_close(change, plain[name], rtol=1e-5, atol=1e-7)
    assert isinstance(tau.deltas["model.layers.0.self_attn.q_proj.weight"], LowRank)
    again = Direction.load(w.save(tmp_path / "w"))
    assert again.norm == pytest.approx(w.norm)


def test_a_full_copy_without_its_start_is_refused(tmp_path: Path) -> None:
    base = tiny_llama(tie_word_embeddings=False)
    adapter(tmp_path, base, 1, modules_to_save=["lm_head"])
    read = PeftAdapter.read(tmp_path)
    with pytest.raises(WeightWatchError, match=r"a full copy of lm_head\.weight.*not on this machine.*Pass the base"):
        changes(read, None)
    with pytest.raises(WeightWatchError, match=r"lm_head\.weight of shape \(48, 32\), which its base has not at all"):
        changes(read, {})
    with pytest.raises(WeightWatchError, match=r"which its base has in shape \(40, 32\) \(a resized vocabulary"):
        changes(read, {HEAD: torch.zeros(40, 32)})
