"""Changes by LoRA and DoRA as factors, against the products in fp64."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests import oracle as slow
from tests.support.adapters import EXACT
from tests.support.models import lora, move, starts, tiny_gpt2, tiny_llama
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.lora import has_factors, is_rescaled, known, plain
from weightwatch.update.peft.modules import AdapterModule
from weightwatch.vectors import WeightWatchError

pytestmark = pytest.mark.filterwarnings("ignore")


def product(adapted: AdapterModule) -> Tensor:
    """Return s B A in fp64, as PEFT's documentation defines it."""
    module = adapted.module
    return module.scaling["default"] * (
        module.lora_B["default"].weight.double() @ module.lora_A["default"].weight.double()
    )


def test_the_change_from_zero_has_the_adapters_own_factors() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"])
    move(model, seed=1)
    view = ModelView(model)
    change = plain(view.adapters[0], view.values, ["default"], view.values, [])
    assert change.right.data_ptr() == view.adapters[0].module.lora_A["default"].weight.data_ptr()  # not copied
    assert (change.rank, change.limited, change.transposed, change.scale) == (4, "right", False, 2.0)
    assert torch.allclose(change.dense().double(), product(view.adapters[0]), atol=1e-6)


@pytest.mark.parametrize("size", [0.1, 1e-4])
def test_a_change_from_a_recorded_start_is_exact_however_small(size: float) -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"], init_lora_weights=False)
    before, start = product(ModelView(model).adapters[0]), starts(model)
    move(model, seed=1, size=size)
    view = ModelView(model)
    change = plain(view.adapters[0], view.values, ["default"], start.get, ["default"])
    want = product(view.adapters[0]) - before
    assert change.rank == 8
    assert (change.dense().double() - want).norm() < 1e-5 * want.norm()


def test_an_adapter_that_trains_only_a_is_limited_on_the_left() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"], init_lora_weights=False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_A" in name)
    view = ModelView(model)
    assert plain(view.adapters[0], view.values, ["default"], view.values, []).limited == "left"


def test_conv1d_and_embeddings_are_transposed() -> None:
    model = lora(tiny_gpt2(), target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    changes = Update(ModelView(model))
    assert changes["transformer.h.0.attn.c_attn.weight"].transposed
    assert changes["transformer.wte.weight"].transposed


def test_kinds_of_factors_are_told_apart() -> None:
    for name, expected in (("LoRA", (True, False)), ("DoRA", (True, True)), ("LoHa", (False, False))):
        (adapted, *_) = ModelView(EXACT[name].build()).adapters
        assert (has_factors(adapted, "default"), is_rescaled(adapted, ["default"])) == expected


def test_a_start_that_is_recorded_in_part_is_an_error() -> None:
    with pytest.raises(WeightWatchError, match=r"The start of w is not recorded.*Start the run anew"):
        known({}.get, "w")


def test_dora_in_bf16_has_the_gains_of_its_forward_pass() -> None:
    torch.manual_seed(1)
    base = tiny_llama(tie_word_embeddings=False).bfloat16()
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    assert starts(model) == {}  # every gain is exactly one
    move(model, seed=3)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.dtype == torch.bfloat16
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    norm = torch.linalg.norm(layer.base_layer.weight + layer.scaling["default"] * (b @ a), dim=1).to(torch.bfloat16)
    gain = (layer.lora_magnitude_vector["default"].weight / norm).double().detach()
    change = Update(ModelView(model))["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(change.rescaling().rows, gain - 1)


def test_dora_in_fp32_on_a_bf16_base_does_not_start_at_zero() -> None:
    """PEFT makes the magnitudes in bf16 and computes with fp32: rounding is up to 0.4 % of a row at the first step."""
    model = EXACT["DoRA in fp32 on a bf16 base"].build()
    assert starts(model)
    assert slow.multiplied_out(Update(ModelView(model)))["model.layers.0.self_attn.q_proj.weight"].any()
