import torch

from tests.support.models import dense, lora, move, tiny_llama
from weightwatch.update.change import Streamed
from weightwatch.update.heads import counted_once
from weightwatch.vectors import Direction, LowRank

HEAD, EMBEDDING, LAYER = "lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
TIED = {HEAD: EMBEDDING}


def direction(**tensors: torch.Tensor) -> Direction:
    names = {"head": HEAD, "embedding": EMBEDDING, "layer": LAYER}
    return Direction.from_tensors({names[key]: tensor for key, tensor in tensors.items()}, name="w")


def streamed() -> Streamed:
    return Streamed((4, 3), lambda box: torch.ones(4, 3)[box], lambda box: torch.zeros(4, 3)[box])


def factors() -> LowRank:
    return LowRank(torch.ones(4, 1), torch.ones(1, 3))


def test_a_head_that_an_adapter_changes_is_a_weight_of_its_own() -> None:
    w = direction(head=torch.ones(4, 3), embedding=torch.ones(4, 3))
    assert HEAD in counted_once(w, TIED, {HEAD: factors(), LAYER: factors()}).deltas


def test_a_head_repeats_an_embedding_that_is_trained() -> None:
    w = direction(head=torch.ones(4, 3), layer=torch.ones(2, 2))
    assert set(counted_once(w, TIED, {EMBEDDING: streamed()}).deltas) == {LAYER}
    assert HEAD in counted_once(w, TIED, {EMBEDDING: factors()}).deltas  # PEFT's adapter is on the look-up alone


def test_beside_a_frozen_embedding_it_counts_once_if_the_direction_changes_both_alike() -> None:
    alike = direction(head=torch.ones(4, 3), embedding=torch.ones(4, 3))
    other = direction(head=torch.ones(4, 3), embedding=-torch.ones(4, 3))
    alone = direction(head=torch.ones(4, 3), layer=torch.ones(2, 2))
    found = [HEAD in counted_once(w, TIED, {LAYER: factors()}).deltas for w in (alike, other, alone)]
    assert found == [False, True, True]


def test_a_direction_of_a_model_that_is_not_tied_stays_as_it_is() -> None:
    w = dense(tiny_llama(tie_word_embeddings=False), 1)
    model = lora(tiny_llama(tie_word_embeddings=False))
    move(model, 1)
    assert counted_once(w, {}, {LAYER: factors()}) is w
