"""What is trained, and how it has changed, in every way that people set a model up."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests import oracle as slow
from tests.support.models import lora, move, tiny_gpt2, tiny_llama
from weightwatch.update.change import Difference
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.theta0 import unrecoverable
from weightwatch.vectors import LowRank, WeightWatchError

LINEAR = {f"{name}.weight" for name, m in tiny_llama().named_modules() if isinstance(m, nn.Linear)} - {"lm_head.weight"}


def test_lora_is_kept_in_factors_and_multiplies_out_to_what_merging_adds() -> None:
    model = lora(tiny_llama(), use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3})
    before = slow.merged(model)
    move(model, seed=1)
    update = Update(ModelView(model))
    assert set(update) == LINEAR
    assert {type(change) for change in update.values()} == {LowRank}
    after = slow.merged(model)
    for name, change in slow.multiplied_out(update).items():
        assert torch.allclose(change.double(), after[name] - before[name], atol=1e-6), name


def test_wrapped_models_have_the_names_of_the_plain_one() -> None:
    model = lora(tiny_llama())
    for wrapped in (nn.ModuleDict({"module": model}), torch.compile(model), nn.ModuleDict({"pretrained_model": model})):
        assert set(Update(ModelView(wrapped))) == LINEAR


def test_a_model_loaded_for_inference_shows_its_active_adapter(tmp_path: Path) -> None:
    model = lora(tiny_llama(), modules_to_save=["lm_head"])
    move(model, seed=1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), str(tmp_path))
    assert not any(p.requires_grad for p in loaded.parameters())
    found, wanted = slow.multiplied_out(Update(ModelView(loaded))), slow.multiplied_out(Update(ModelView(model)))
    assert set(found) == set(wanted) == LINEAR | {"lm_head.weight"}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_frozen_model_without_adapters_shows_all_its_tensors() -> None:
    model = tiny_llama()
    start = copy.deepcopy(model.state_dict())
    move(model, seed=1)
    model.requires_grad_(False)
    assert set(Update(ModelView(model), Reference.of(start))) == {name for name, _ in model.named_parameters()}


def test_tied_weights_count_once() -> None:
    model = tiny_llama()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    update = Update(ModelView(model), Reference.of(copy.deepcopy(model.state_dict())))
    assert "model.embed_tokens.weight" in update
    assert "lm_head.weight" not in update


def test_modules_to_save_are_measured_from_the_original_that_peft_keeps() -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), modules_to_save=["lm_head"])
    start = slow.merged(model)["lm_head.weight"]
    move(model, seed=1)
    change = Update(ModelView(model))["lm_head.weight"]
    assert isinstance(change, Difference)
    wanted = slow.merged(model)["lm_head.weight"] - start
    assert torch.allclose(slow.multiplied_out(Update(ModelView(model)))["lm_head.weight"].double(), wanted, atol=1e-6)


def test_biases_that_train_beside_lora_are_part_of_the_update() -> None:
    base = tiny_gpt2()
    model = lora(base, bias="all", fan_in_fan_out=True)
    reference = Reference.of(copy.deepcopy(base.state_dict()))
    move(model, seed=1)
    biases = {name for name, _ in base.named_parameters() if name.endswith(".bias")}
    assert {name for name in Update(ModelView(model), reference) if name.endswith(".bias")} == biases
    assert set(unrecoverable(ModelView(model))) == biases
    with pytest.raises(WeightWatchError, match=r"θ₀ of .*\.bias is unknown"):
        Update(ModelView(model))


def test_a_base_weight_that_trains_beneath_its_adapter_is_refused() -> None:
    base = tiny_llama()
    model = lora(base, target_modules=["q_proj"])
    model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.requires_grad_(True)
    with pytest.raises(WeightWatchError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight"):
        Update(ModelView(model), Reference.of(base.state_dict()))


def test_a_scalar_parameter_can_be_trained() -> None:
    model = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(2.0))})
    assert (
        slow.multiplied_out(Update(ModelView(model), Reference.of({"scale": torch.tensor(0.5)})))["scale"].item() == 1.5
    )


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(WeightWatchError, match="no trained parameters"):
        Update(ModelView(nn.ReLU()))


def test_a_missing_start_is_an_error_that_says_what_to_pass() -> None:
    model = tiny_llama()
    with pytest.raises(WeightWatchError, match=r"θ₀ of .* is unknown: pass reference=, a state dict or the path"):
        Update(ModelView(model))
    start = {name: tensor for name, tensor in model.state_dict().items() if name != "model.norm.weight"}
    with pytest.raises(WeightWatchError, match=r"θ₀ of model\.norm\.weight is unknown"):
        Update(ModelView(model), Reference.of(copy.deepcopy(start)))


def test_a_start_of_another_shape_is_an_error_that_gives_both() -> None:
    with pytest.raises(WeightWatchError, match=r"θ₀ has shape \(48, 64\) for .* the model has \(48, 32\)"):
        Update(ModelView(tiny_llama()), Reference.of(tiny_llama(hidden_size=64).state_dict()))


def test_a_reference_that_shares_memory_with_the_model_is_an_error() -> None:
    """A state dict is not a copy: training moves it along, and every figure would stay zero."""
    model = tiny_llama()
    with pytest.raises(WeightWatchError, match=r"reference .* the model's own memory.*clone"):
        Update(ModelView(model), Reference.of(model.state_dict()))
