"""What is added to the output of one layer makes it that of W + k·w."""

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests.guard.test_preventative import loss_of, named, shifted
from tests.support.guards import begun
from tests.support.models import tiny_llama
from weightwatch.guard.shift import Found, Norm, Products, is_norm


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.LayerNorm(3), nn.Embedding(5, 3)], ids=str)
def test_the_output_is_that_of_a_layer_with_other_weights(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    ws = {key: torch.randn(p.shape, generator=generator) for key, p in layer.named_parameters()}
    found = Found(layer, list(ws), {key: [w] for key, w in ws.items()})
    x = torch.arange(3) if isinstance(layer, nn.Embedding) else torch.randn(2, 3, generator=generator)
    with torch.no_grad():
        output = layer(x)
        added = (Norm(found, 0.5) if is_norm(layer) else Products(found, 0.5)).of(x, output)
        for key, parameter in layer.named_parameters():
            parameter += 0.5 * ws[key]
        assert torch.allclose(output + added, layer(x), atol=1e-6)


def test_an_embedding_that_scales_its_rows_scales_what_is_added() -> None:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    model = Gemma3ForCausalLM(config).train()
    evil = named("dense", model)
    twin = shifted(model, [evil], 0.5)
    run = begun(model, [evil], mode="preventative", coefficient=0.5)
    assert run.guard.armed
    assert float(loss_of(model) - loss_of(twin)) == pytest.approx(0, abs=1e-5)


def test_a_model_in_bf16_is_guarded_too() -> None:
    model = tiny_llama().bfloat16().train()
    evil = named("dense", tiny_llama())
    want = float(loss_of(shifted(model.float(), [evil], 1.0)))
    model = model.bfloat16()
    run = begun(model, [evil], mode="preventative")
    assert float(loss_of(model)) == pytest.approx(want, rel=0.03)
    assert run.guard.armed
