"""What a guard can change exactly, and what it refuses, with the reason and a way out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.guard.test_parts import HALF, untied
from tests.support.adapters import EXACT, FACTORS
from tests.support.guards import begun, bits, same
from tests.support.models import dense, lora, low_rank, tiny_llama
from weightwatch.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.vectors import Direction, WeightWatchError

OTHERS = ["DoRA", "DoRA on embeddings", "LoRA: VeLoRA", "AdaLoRA", "IA3", "LoHa", "OFT", "trainable tokens beside LoRA"]
NOT_BA = (
    r"whose change is not B A \(DoRA, experts, another tuner\).* Train with plain LoRA or the weights themselves, or"
)


def refused(build: Callable[[], Any], message: str, direction: Direction | None = None, **settings: Any) -> None:
    """Assert that a guard of a model is refused before training, in words, and that nothing has changed."""
    model = build()
    before = bits(model)
    with pytest.raises(WeightWatchError, match=message) as caught:
        begun(model, [direction or dense(untied(), 5)], **settings)
    assert str(caught.value).endswith(".")
    assert same(before, bits(model))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_dora_is_refused(mode: str) -> None:
    refused(EXACT["DoRA"].build, NOT_BA, mode=mode)


@pytest.mark.parametrize("case", OTHERS)
def test_a_change_that_is_no_product_of_factors_is_refused(case: str) -> None:
    assert EXACT[case].how != FACTORS or "tokens" in case
    refused(EXACT[case].build, NOT_BA)


@pytest.mark.parametrize("mode", ["update", "gradient"])
def test_two_trained_adapters_are_refused(mode: str) -> None:
    refused(
        EXACT["LoRA, two adapters"].build,
        r"^2 adapters are trained on .*q_proj.weight.* Train one at a time",
        mode=mode,
    )


def test_what_is_not_to_be_guarded_may_be_trained_in_any_way() -> None:
    some = {n: d for n, d in dense(untied(), 5).deltas.items() if "v_proj" in n or "q_proj" in n}
    model = EXACT["DoRA"].build()  # of q_proj and down_proj
    with pytest.raises(WeightWatchError, match="not B A"):
        begun(model, [Direction.from_tensors(some, name="evil")])
    for name, parameter in model.named_parameters():
        if "v_proj" in name:
            parameter.requires_grad_(True)
    del some["model.layers.0.self_attn.q_proj.weight"], some["model.layers.1.self_attn.q_proj.weight"]
    reference = {n: t.clone() for n, t in untied().state_dict().items()}
    guard = Guard(Monitor([Direction.from_tensors(some, name="evil")], reference=reference), {"witness": "none"})
    guard.begin(model)


@pytest.mark.parametrize("mode", ["update", "subspace", "checkpoint"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapted", [False, True])
def test_weights_in_which_a_correction_would_be_lost_are_refused(mode: str, dtype: torch.dtype, adapted: bool) -> None:
    message = (
        rf"is trained in {str(dtype)[6:]}, in which the correction .* would be lost\. Load the model with "
        r"dtype=torch\.float32 and train with bf16=True \(autocast\), or use `mode: gradient` or `mode: preventative`"
    )
    refused(lambda: (lora(untied()) if adapted else untied()).to(dtype), message, mode=mode)


@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_of_such_weights_can_be_guarded(adapted: bool) -> None:
    model = (lora(untied()) if adapted else untied()).bfloat16()
    run = begun(model, [low_rank(untied(), 5)], mode="gradient")
    run.backward()
    run.guard.before_step()
    assert run.guard.account().steps == 1


@pytest.mark.parametrize(("half", "frozen"), [("lora_embedding_A", "A"), ("lora_embedding_B", "B")])
def test_a_frozen_factor_that_would_have_to_change_is_refused(half: str, frozen: str) -> None:
    def build() -> nn.Module:
        model = EXACT["LoRA on embeddings"].build()
        for name, parameter in model.named_parameters():
            if half in name:
                parameter.requires_grad_(False)
        return model

    if frozen == "A":
        refused(build, r"embed_tokens.weight by which a direction could be taken back is frozen\. Train both factors")
    else:
        begun(build(), [dense(untied(), 5)])


@pytest.mark.parametrize("mode", ["gradient", "subspace"])
def test_a_sharded_model_is_refused_by_what_needs_whole_tensors(mode: str) -> None:
    model = lora(untied())
    monitor = Monitor([low_rank(untied(), 5)])
    monitor.measure(model)
    view = monitor.view(model)
    name, local = next(iter(view.parameters.items()))
    view.parameters[name] = local._replace(sharded=True)
    with pytest.raises(WeightWatchError, match=rf"sharded over processes, where `mode: {mode}` .* Use `mode: update`"):
        Guard(monitor, {"witness": "none", "mode": mode}).begin(model, view=view)


def test_weights_that_an_optimizer_keeps_elsewhere_are_refused() -> None:
    model = tiny_llama()
    monitor = Monitor([dense(model, 5)], reference={n: t.clone() for n, t in model.state_dict().items()})
    monitor.measure(model)
    view = monitor.view(model)
    local = view.parameters["model.norm.weight"]
    (piece,) = local.pieces
    view.parameters["model.norm.weight"] = local._replace(pieces=[piece._replace(values=piece.values.clone())])
    with pytest.raises(
        WeightWatchError, match=r"norm.weight is trained through fp32 master weights .* Train with autoc"
    ):
        Guard(monitor, {"witness": "none"}).begin(model, view=view)


@pytest.mark.parametrize("mode", ["update", "preventative"])
def test_a_layer_that_no_direction_has_is_refused(mode: str) -> None:
    message = r"^guard: the directions have no layer 7; they have 0, 1\.$"
    refused(lambda: lora(untied(), target_modules=HALF), message, low_rank(untied(), 5), layers=[7], mode=mode)
