"""Which modules have adapters, which parameters are the adapters', and what is refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from tests import oracle as slow
from tests.support.adapters import EXACT
from tests.support.models import lora, move, tiny_gpt2, tiny_llama
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.modules import Start, changes_base
from weightwatch.vectors import WeightWatchError

pytestmark = pytest.mark.filterwarnings("ignore")

Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def test_an_adapter_module_knows_its_parameters_and_its_base_weight() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"])
    first, second = ModelView(model).adapters
    assert (first.path, first.module) == (Q_PROJ, model.get_submodule(Q_PROJ))
    assert first.names == {f"lora_{x}.default.weight": f"{Q_PROJ}.lora_{x}.default.weight" for x in "AB"}
    assert first.trained == set(first.own)
    assert first.weight == "model.layers.0.self_attn.q_proj.weight"
    assert first.base_parameter("bias") == "model.layers.0.self_attn.q_proj.bias"
    assert second.weight == "model.layers.1.self_attn.q_proj.weight"
    assert not first.sharded


def test_only_trained_adapters_count_unless_all_are_wanted() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"])
    for name in ("second", "third"):
        model.add_adapter(name, LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".second." in name)
    adapted = ModelView(model).adapters[0]
    assert adapted.available == {"default", "second", "third"}
    assert adapted.active == ["default", "second"]
    assert adapted.adapters(every=False) == ["second"]
    assert adapted.adapters(every=True) == ["default", "second"]


def test_started_adapters_are_those_of_which_any_parameter_is_recorded_also_if_they_are_gone() -> None:
    adapted = ModelView(lora(tiny_llama(), target_modules=["q_proj"])).adapters[0]
    assert adapted.started(Start()) == []
    assert adapted.started(Start({adapted.own[0]: torch.ones(1)})) == ["default"]
    assert adapted.started(Start({f"{Q_PROJ}.scaling.gone": torch.tensor(2.0)})) == ["gone"]


@pytest.mark.parametrize("name", ["mine", "weight", "lora_A", "ref"])
def test_an_adapter_may_have_any_name(name: str) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name=name)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"]))
    adapted = ModelView(model).adapters[0]
    assert (adapted.available, adapted.active, adapted.adapters(every=False)) == ({name, "other"}, [name], [name])
    start = slow.merged(model)
    move(model, seed=1)
    after = slow.merged(model)
    for key, change in slow.multiplied_out(Update(ModelView(model))).items():
        assert torch.allclose(change.double(), after[key] - start[key], atol=1e-6), key


def test_a_model_without_adapters_has_no_adapter_modules() -> None:
    assert ModelView(nn.Linear(2, 2)).adapters == []
    assert changes_base(dict(tiny_llama().named_modules())) is None


def test_saved_modules_are_those_of_the_active_adapter_biases_included() -> None:
    model = lora(tiny_gpt2(), target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True)
    other = LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True)
    model.add_adapter("second", other)
    model.set_adapter("second")
    start = copy.deepcopy(model)
    move(model, seed=1)
    update = Update(ModelView(model))
    assert {name for name in update if "ln_f" in name} == {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    now, before = slow.merged(model), slow.merged(start)
    for name, change in slow.multiplied_out(update).items():
        assert torch.allclose(change.double(), now[name] - before[name], atol=1e-6), name
    assert set(slow.moved_names(model, now, before)) == set(update)


def test_a_way_of_training_that_peft_adds_some_day_is_refused() -> None:
    class Other(AuxiliaryTrainingWrapper):
        def init_modules(self, adapter_name: str) -> None:
            self.copy = copy.deepcopy(self.original_module)

        def _get_available_adapters(self) -> set[str]:
            return set(self._adapters)

    model = EXACT["LoRA"].build()
    model.base_model.model.lm_head = Other(model.base_model.model.lm_head, "default")
    with pytest.raises(WeightWatchError, match=r"lm_head is trained through PEFT's Other.*modules_to_save"):
        Update(ModelView(model))
