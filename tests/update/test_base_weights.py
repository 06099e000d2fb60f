"""Single values of θ₀, whatever training has made of the model."""

import copy

import pytest
import torch
from torch import nn

from tests.support.models import lora, move, starts, tiny_llama
from weightwatch.update.base_weights import BaseWeights
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference


@pytest.mark.parametrize("source", ["base in the model", "reference"])
def test_base_weight_reads_the_start_and_not_what_training_made_of_it(source: str) -> None:
    base = tiny_llama(tie_word_embeddings=False)
    start = copy.deepcopy(base.state_dict())
    if source == "reference":
        model, reference = base, Reference.of(start)
    else:
        model = lora(base, modules_to_save=["lm_head"], init_lora_weights="pissa")
        reference = Reference(adapters=starts(model))
    move(model, seed=1)
    read = BaseWeights(ModelView(model), reference)
    for name in ("model.layers.0.self_attn.q_proj.weight", "lm_head.weight", "model.norm.weight"):
        assert read.shape(name) == tuple(start[name].shape)
        where = torch.tensor([0, 7, start[name].numel() - 1])
        assert torch.allclose(read.values(name, where), start[name].reshape(-1)[where], atol=1e-6)
    with pytest.raises(KeyError):
        read.shape("model.layers.9.self_attn.q_proj.weight")


def test_a_quantised_base_has_no_values_to_read() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert BaseWeights(ModelView(model), Reference()).shape("weight") is None


def test_a_tied_head_is_read_as_the_embedding_at_the_start() -> None:
    model = tiny_llama()
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    move(model, seed=1)
    read = BaseWeights(ModelView(model), Reference.of(start))
    assert read.shape("lm_head.weight") == (48, 32)
    assert read.values("lm_head.weight", torch.tensor([40])) == start["model.embed_tokens.weight"].reshape(-1)[40]
