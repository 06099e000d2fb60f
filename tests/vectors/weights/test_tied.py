import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from tests.support.models import tiny_llama
from weightwatch.update.change import Streamed
from weightwatch.update.checkpoint import of_weights
from weightwatch.vectors import Direction
from weightwatch.vectors.precision import BLOCK
from weightwatch.vectors.steering.checkpoint import matched
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.tied import copies, unsaved_heads

EMBEDDING, HEAD, LAYER = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.weight"


def saved(folder: Path, tensors: dict[str, Tensor], **config: object) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


@pytest.fixture
def table() -> Tensor:
    return torch.randn(8, 6)


def test_a_head_that_repeats_the_embedding_is_a_copy_of_it(tmp_path: Path, table: Tensor) -> None:
    found = copies(saved(tmp_path, {HEAD: table, EMBEDDING: table, LAYER: table}))
    assert found == {HEAD: EMBEDDING}


def test_a_single_value_apart_makes_two_weights(tmp_path: Path) -> None:
    rows = BLOCK // 64 + 3  # more than one block of 64 columns
    embedding = torch.randn(rows, 64)
    head = embedding.clone()
    head[-1, -1] += 1e-3
    assert copies(saved(tmp_path, {EMBEDDING: embedding, HEAD: head})) == {}
    assert copies(saved(tmp_path, {EMBEDDING: embedding, HEAD: embedding})) == {HEAD: EMBEDDING}


@pytest.mark.parametrize(
    ("embedding", "head"),
    [
        (torch.zeros(8, 6), torch.zeros(8, 6)),
        (torch.ones(8, 6), torch.ones(8, 6).bfloat16()),
        (torch.ones(8, 6), torch.ones(6, 8)),
        (torch.ones(8, 6, dtype=torch.uint8), torch.ones(8, 6, dtype=torch.uint8)),
    ],
)
def test_zeros_other_precisions_other_shapes_and_integers_are_no_copies(
    tmp_path: Path, embedding: Tensor, head: Tensor
) -> None:
    assert copies(saved(tmp_path, {EMBEDDING: embedding, HEAD: head})) == {}


def test_a_config_that_unties_the_head_wins_over_equal_values(tmp_path: Path, table: Tensor) -> None:
    tensors = {EMBEDDING: table, HEAD: table}
    assert copies(saved(tmp_path, tensors, tie_word_embeddings=False)) == {}
    assert copies(saved(tmp_path, tensors, tie_word_embeddings=True)) == {HEAD: EMBEDDING}


def test_a_head_that_is_not_saved_is_known_by_the_embeddings_shape(tmp_path: Path, table: Tensor) -> None:
    shapes = {EMBEDDING: (8, 6), HEAD: (8, 6), "other.weight": (8, 7), LAYER: (8, 6)}
    assert unsaved_heads(saved(tmp_path, {EMBEDDING: table}), shapes) == {HEAD: EMBEDDING}
    assert unsaved_heads(saved(tmp_path, {EMBEDDING: table}, tie_word_embeddings=False), shapes) == {}
    assert unsaved_heads(saved(tmp_path, {EMBEDDING: table, HEAD: table}), shapes) == {}


@pytest.mark.parametrize("tie", [True, False])
def test_scanning_and_steering_agree_whether_a_head_is_tied(tmp_path: Path, table: Tensor, tie: bool) -> None:
    tensors = {EMBEDDING: table, HEAD: table}
    start = saved(tmp_path / "start", tensors, tie_word_embeddings=tie)
    now = saved(tmp_path / "now", {name: tensor + 1 for name, tensor in tensors.items()}, tie_word_embeddings=tie)
    update = of_weights(now, start)
    assert all(isinstance(change, Streamed) for change in update.changes.values())
    w = Direction.from_tensors({EMBEDDING: torch.ones(8, 6)}, name="evil")
    steered = dict(matched(now, w))
    assert update.tied == ({HEAD} if tie else set())
    assert set(update.changes) == ({EMBEDDING} if tie else {EMBEDDING, HEAD})
    assert steered == ({EMBEDDING: EMBEDDING, HEAD: EMBEDDING} if tie else {EMBEDDING: EMBEDDING})


def test_the_model_of_the_config_tells_which_head_is_tied(tmp_path: Path) -> None:
    """A score head of the embedding's shape is none, and nor is the head of a model that has another one."""
    kinds = {"tied": (LlamaForCausalLM, True), "untied": (LlamaForCausalLM, False)}
    kinds["score"] = (LlamaForSequenceClassification, True)
    found = {}
    for name, (kind, tie) in kinds.items():
        config = tiny_llama(tie_word_embeddings=tie).config
        config.num_labels = config.vocab_size
        kind(config).save_pretrained(tmp_path / name)
        shapes = dict.fromkeys((HEAD, "score.weight", "classifier.weight"), (48, 32))
        found[name] = unsaved_heads(Checkpoint(tmp_path / name), shapes)
    assert found == {"tied": {HEAD: EMBEDDING}, "untied": {}, "score": {}}


@pytest.mark.parametrize("config", ["[1]", "{", "[" * 100_000, "null"])
def test_a_damaged_config_unties_nothing(tmp_path: Path, table: Tensor, config: str) -> None:
    stored = saved(tmp_path, {EMBEDDING: table, HEAD: table})
    (tmp_path / "config.json").write_text(config)
    assert copies(stored) == {HEAD: EMBEDDING}
