"""The base beneath adapters holds still, or it is noticed that it does not."""

from pathlib import Path

import torch
from peft import LoraConfig
from torch import nn
from transformers import LlamaForCausalLM

from tests.support.models import lora, move, tiny_llama
from weightwatch.update.frozen import FrozenBase
from weightwatch.update.model_view import ModelView
from weightwatch.vectors.weights.names import canonical


def merged(model: nn.Module) -> set[str]:
    """Merge the adapters into the base as ReLoRA does, and return the names of the weights that have changed."""
    names = set()
    with torch.no_grad():
        for path, module in model.named_modules():
            if "default" in getattr(module, "lora_B", {}):
                module.get_base_layer().weight += module.get_delta_weight("default")
                module.lora_B["default"].weight.zero_()
                names.add(canonical(f"{path}.base_layer.weight"))
    return names


def test_training_the_adapters_leaves_the_base_as_it_was() -> None:
    model = lora(tiny_llama())
    base = FrozenBase.of(ModelView(model))
    move(model, seed=1)
    assert base.changed(ModelView(model)) == {}


def test_weights_that_an_adapter_is_merged_into_have_changed() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj", "down_proj"])
    base = FrozenBase.of(ModelView(model))
    move(model, seed=1)
    names = merged(model)
    assert len(names) == 4
    assert base.changed(ModelView(model)) == dict.fromkeys(names, True)


def test_adapters_merged_for_the_moment_are_no_change() -> None:
    model = lora(tiny_llama())
    base = FrozenBase.of(ModelView(model))
    move(model, seed=1)
    model.merge_adapter()
    assert base.changed(ModelView(model)) == {}
    model.unmerge_adapter()
    assert not any(base.changed(ModelView(model)).values())


def test_a_parameter_that_is_trained_later_is_not_frozen() -> None:
    model = lora(tiny_llama())
    base = FrozenBase.of(ModelView(model))
    norm = model.base_model.model.model.norm.weight.requires_grad_(True)
    with torch.no_grad():
        norm += 1.0
    assert base.changed(ModelView(model)) == {}


def test_frozen_adapters_that_are_active_belong_to_the_base() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".second." in name)
    base = FrozenBase.of(ModelView(model))
    assert base.adapters == {"default"}
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    nn.init.ones_(layer.lora_B["default"].weight)
    assert [name.rpartition("q_proj.")[2] for name in base.changed(ModelView(model))] == ["lora_B.default.weight"]


def test_the_checkpoint_of_the_config_has_the_base_only_if_its_values_are_those_at_the_start(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = lora(LlamaForCausalLM.from_pretrained(tmp_path))
    view = ModelView(model)
    base = FrozenBase.of(view)
    found = base.checkpoint(view.frozen)
    assert found is not None
    assert found.path == tmp_path
    merged(model)
    assert base.checkpoint(ModelView(model).frozen) is not None  # it still has the start

    other = lora(LlamaForCausalLM.from_pretrained(tmp_path))
    move(other, seed=1)
    merged(other)
    view = ModelView(other)
    assert FrozenBase.of(view).checkpoint(view.frozen) is None
    assert FrozenBase.of(ModelView(lora(tiny_llama()))).checkpoint({}) is None
