"""A parameter that is replaced in mid-run is noticed at the next step, and named."""

import copy

import pytest
import torch
from torch import nn

from tests.guard.test_parts import started, untied
from tests.support.guards import Run, bits, same
from tests.support.models import lora
from weightwatch.guard.snapshot import Snapshot
from weightwatch.update.model_view import ModelView
from weightwatch.vectors import WeightWatchError

REPLACED = (
    r"{name} was replaced by another parameter, or removed, after the guard began, so its update can't be guarded"
)


def again(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def act(run: Run) -> None:
    """Do what a guard does in one step."""
    run.guard.before_step()
    run.guard.after_step()


@pytest.mark.parametrize("mode", ["update", "subspace", "gradient", "checkpoint"])
def test_a_parameter_that_is_replaced_is_a_fault_at_the_next_step(mode: str) -> None:
    run, _ = started("all weights", "factors", mode=mode)
    run.step()
    layer = run.model.get_submodule("model.layers.1.mlp.down_proj")
    layer.weight = again(layer.weight)
    run.backward()
    before = bits(run.model)
    with pytest.raises(WeightWatchError, match=REPLACED.format(name=r"^model\.layers\.1\.mlp\.down_proj\.weight")):
        act(run)
    assert same(before, bits(run.model))
    run.guard.begin(run.model, run.optimizer)  # the way out in a loop of one's own
    act(run)


@pytest.mark.parametrize("change", ["replaced", "removed", "module"])
def test_a_factor_that_is_replaced_or_taken_away_is_named(change: str) -> None:
    run, _ = started("LoRA", "factors")
    factors = run.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").lora_B
    if change == "replaced":
        factors["default"].weight = again(factors["default"].weight)
    elif change == "removed":
        del factors["default"].weight
    else:
        factors["default"] = copy.deepcopy(factors["default"])
    name = r"layers\.0\.self_attn\.q_proj\.lora_B\.default\.weight"
    with pytest.raises(WeightWatchError, match=REPLACED.format(name=name)):
        act(run)


def test_a_frozen_parameter_may_be_replaced_and_what_is_trained_in_its_place_is_noticed() -> None:
    model = lora(untied())
    found = Snapshot(ModelView(model))
    layer = model.get_submodule("base_model.model.lm_head")
    layer.weight = again(layer.weight)
    assert not found.changed()
    layer.weight.requires_grad_(True)
    with pytest.raises(WeightWatchError, match=REPLACED.format(name=r"lm_head\.weight")):
        found.changed()


def test_values_that_change_in_place_are_no_change_and_what_is_frozen_or_scaled_is_one() -> None:
    model = lora(untied())
    found = Snapshot(ModelView(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert not found.changed()
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    layer.set_scale("default", 3.0)
    assert found.changed()
    found = Snapshot(ModelView(model))
    layer.lora_B["default"].weight.requires_grad_(False)
    assert found.changed()
