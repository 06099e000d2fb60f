"""In training mode, a model computes what it would with weights of W + k·w; otherwise it is as it was."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tests import oracle as slow
from tests.guard.test_parts import CASES, of_kind, untied
from tests.support.guards import begun, bits, same
from tests.support.models import dense, lora, tiny_llama
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import Direction, WeightWatchError

IDS = torch.arange(24).reshape(2, 12)


def shifted(model: nn.Module, directions: Sequence[Direction], k: float) -> nn.Module:
    """Return a copy whose weights are W + k·w; under adapters, those beneath them."""
    twin = copy.deepcopy(model)
    ws = [slow.dense(direction) for direction in directions]
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            if "lora_" not in key and ".original_module." not in key:
                for w in ws:
                    if slow.canonical(key) in w:
                        parameter += k * w[slow.canonical(key)].float()
    return twin


def loss_of(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss


def linear(kind: str, base: nn.Module, seed: int = 5, **settings: str) -> Direction:
    """Return a direction of the weights of linear layers and embeddings alone."""
    found = of_kind(kind, base, seed, **settings).deltas
    return Direction.from_tensors({n: d for n, d in found.items() if len(d.shape) == 2}, name=f"evil-{seed}")


@pytest.mark.parametrize("kind", ["dense", "factors"])
@pytest.mark.parametrize(
    "case",
    [
        "all weights",
        "all weights, tied",
        "all weights of Conv1D",
        "LoRA",
        "LoRA on Conv1D",
        "LoRA on embeddings",
        "LoRA beside copies of modules",
        "LoRA that is trained further",
    ],
)
def test_training_sees_the_shifted_model_and_everything_else_the_plain_one(case: str, kind: str) -> None:
    base, build, starts = CASES[case]
    model = build().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    directions = [linear(kind, base(), 5), linear(kind, base(), 6)]
    twin, plain, before = shifted(model, directions, 0.7), copy.deepcopy(model), bits(model)
    names, hooks = list(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    run = begun(model, directions, starts=starts, mode="preventative", coefficient=0.7)
    loss, want = loss_of(model), loss_of(twin)
    assert float((loss - want).detach()) == pytest.approx(0, abs=1e-5)
    assert abs(float(want - loss_of(plain))) > 1e-3
    loss.backward()
    want.backward()
    others = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert others[name].grad is None
        else:
            assert torch.allclose(parameter.grad, others[name].grad, rtol=1e-3, atol=1e-5), name
    model.eval()
    assert torch.equal(loss_of(model), loss_of(plain.eval()))
    assert list(model.state_dict()) == names
    model.train()
    run.guard.end()
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert torch.equal(loss_of(model), loss_of(plain.train()))
    assert same(before, bits(model))


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
    evil = linear("dense", model)
    twin = shifted(model, [evil], 0.5)
    begun(model, [evil], mode="preventative", coefficient=0.5)
    assert float(loss_of(model) - loss_of(twin)) == pytest.approx(0, abs=1e-5)


def test_beginning_again_does_not_add_twice() -> None:
    model = tiny_llama().train()
    evil = linear("factors", model)
    twin = shifted(model, [evil], 1.0)
    run = begun(model, [evil], mode="preventative")
    run.guard.begin(model)
    assert float(loss_of(model) - loss_of(twin)) == pytest.approx(0, abs=1e-5)
    run.guard.end()
    assert not any(m._forward_hooks for m in model.modules())


def test_an_alert_begins_to_add() -> None:
    model = lora(untied()).train()
    evil = linear("factors", untied())
    plain, twin = float(loss_of(model)), float(loss_of(shifted(model, [evil], 1.0)))
    run = begun(model, [evil], mode="preventative", when="alert")
    assert float(loss_of(model)) == plain
    run.guard.arm()
    assert float(loss_of(model)) == pytest.approx(twin, abs=1e-5)


def test_layers_can_be_chosen() -> None:
    model = lora(untied()).train()
    evil = linear("factors", untied())
    some = Direction.from_tensors({n: d for n, d in evil.deltas.items() if ".layers.1." in n}, name="some")
    twin = shifted(model, [some], 1.0)
    begun(model, [evil], mode="preventative", layers=[1])
    assert float(loss_of(model) - loss_of(twin)) == pytest.approx(0, abs=1e-5)


def test_a_model_in_bf16_is_guarded_too() -> None:
    model = tiny_llama().bfloat16().train()
    evil = linear("dense", tiny_llama())
    want = float(loss_of(shifted(model.float(), [evil], 1.0)))
    model = model.bfloat16()
    begun(model, [evil], mode="preventative")
    assert float(loss_of(model)) == pytest.approx(want, rel=0.03)


def test_a_weight_that_is_not_that_of_a_linear_layer_is_refused() -> None:
    with pytest.raises(
        WeightWatchError,
        match=r"'evil' has .*norm.weight, which is the weight of LlamaRMSNorm; `mode: preventative` adds",
    ):
        begun(model := tiny_llama(), [dense(tiny_llama(), 5)], mode="preventative")
    model = tiny_llama()
    monitor = Monitor([dense(model, 5)], reference={n: p.clone() for n, p in model.state_dict().items()})
    with pytest.raises(WeightWatchError, match="LlamaRMSNorm"):
        Guard(monitor, {"witness": "none", "mode": "preventative"}).begin(model)
    assert not any(m._forward_hooks for m in model.modules())
