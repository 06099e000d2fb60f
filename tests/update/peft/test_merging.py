"""What PEFT merges into a copy of an adapter module, tried once for each kind."""

import copy

import pytest
import torch

from tests.support.adapters import EXACT
from tests.support.models import move
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft import merging
from weightwatch.vectors import WeightWatchError

pytestmark = pytest.mark.filterwarnings("ignore")


def module(name: str) -> torch.nn.Module:
    """Return the first adapter module of a case."""
    return ModelView(EXACT[name].build()).adapters[0].module


def test_a_kind_of_adapter_module_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EXACT["IA3"].build()
    tried = []
    real = merging._trial
    monkeypatch.setattr(merging, "_results", {})
    monkeypatch.setattr(merging, "_trial", lambda *of: tried.append(of) or real(*of))
    for _ in range(3):
        Update(ModelView(model))
    assert len(tried) == 2  # k_proj on the way out, down_proj on the way in


def test_a_merge_that_is_not_what_the_adapter_does_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EXACT["VeRA"].build()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    true = type(layer).get_delta_weight
    monkeypatch.setattr(merging, "_results", {})
    monkeypatch.setattr(type(layer), "get_delta_weight", lambda self, adapter: 1.01 * true(self, adapter))
    with pytest.raises(WeightWatchError, match=r"q_proj is a vera adapter.*is not what the adapter does"):
        Update(ModelView(model))


@pytest.mark.parametrize("name", ["LoHa", "IA3"])
def test_a_difference_is_that_of_two_merged_copies_in_fp64(name: str) -> None:
    model = EXACT[name].build()
    move(model, seed=1)
    adapted = ModelView(model).adapters[0]
    start = {local: parameter.detach().clone() for local, parameter in adapted.module.named_parameters()}
    start = {local: value for local, value in start.items() if local in adapted.names}
    move(model, seed=2)
    want = []
    for values in (start, {}):
        twin = copy.deepcopy(adapted.module).double()
        for local, value in values.items():
            dict(twin.named_parameters())[local].data = value.double()
        twin.merge()
        want.append(twin.get_base_layer().weight.detach())
    found = merging.difference(adapted.module, "weight", ["default"], ["default"], start)
    assert found.dtype == torch.float64
    assert torch.allclose(found, want[1] - want[0], rtol=0, atol=1e-12)


def test_the_parameters_that_adapters_can_change_are_named() -> None:
    found = module("LN tuning")
    assert merging.changed(found, ["default"], ["ln_tuning_layers.default.weight"]) == ("weight",)


def test_trying_a_kind_leaves_the_module_and_the_random_numbers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_results", {})
    found = module("LoHa")
    before, state = copy.deepcopy(found.state_dict()), torch.get_rng_state()
    merging.changed(found, ["default"], [name for name, _ in found.named_parameters() if "hada" in name])
    assert all(torch.equal(found.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.merged_adapters


def test_an_offloaded_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_results", {})
    found = module("LoHa").to("meta")
    with pytest.raises(merging.NotMergeableError, match="some of its parameters are offloaded"):
        merging.changed(found, ["default"], [])


def test_a_base_of_integers_is_quantised() -> None:
    found = module("LoHa")
    assert not merging.quantised(found)
    found.get_base_layer().weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert merging.quantised(found)
