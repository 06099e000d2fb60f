"""A layout that is kept from check to check gives what a new walk through the model gives, whatever has changed."""

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig
from torch import nn

from tests.support.models import lora, low_rank, move, tiny_llama
from weightwatch import Monitor, Reading, WeightWatchError
from weightwatch.update.layout import Layout, ModuleTree
from weightwatch.update.model_view import ModelView

MODULES = ["q_proj", "down_proj"]


def two() -> PeftModel:
    """Return a model with two adapters that do not start at zero, of which the first is trained."""
    model = lora(tiny_llama(tie_word_embeddings=False), target_modules=MODULES, init_lora_weights=False)
    model.add_adapter("second", LoraConfig(r=2, target_modules=[*MODULES, "v_proj"], init_lora_weights=False))
    return model


def first_layer(model: nn.Module) -> Any:
    return model.get_submodule("base_model.model.model.layers.0")


def q_proj(model: nn.Module) -> Any:
    return first_layer(model).self_attn.q_proj


def described(view: ModelView) -> object:
    """Return all that a check reads from a view."""
    parameters = {
        name: (
            (local.shape, local.dtype, local.trained, local.sharded),
            [(p.values.device, p.values.data_ptr(), p.values.dtype, p.box) for p in local.pieces],
        )
        for name, local in view.parameters.items()
    }
    adapters = [
        (a.path, id(a.module), dict(a.names), dict(a.owners), a.trained, a.sharded, a.active, a.available)
        for a in view.adapters
    ]
    plain = view.copies, view.every, view.full, list(view.direct), list(view.frozen), view.base_name, view.changed_by
    return list(parameters), parameters, adapters, *plain, view.ranks


def outcome(act: Callable[[], Any]) -> Any:
    """Return the result of a call, or its error as text."""
    try:
        found = act()
    except WeightWatchError as error:
        return str(error)
    return replace(found, time="") if isinstance(found, Reading) else found


def replaced(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach() * 2, parameter.requires_grad)


def add(model: PeftModel, folder: Path) -> None:
    model.add_adapter("third", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.set_adapter("third")


def delete(model: PeftModel, folder: Path) -> None:
    model.delete_adapter("second")


def delete_the_trained(model: PeftModel, folder: Path) -> None:
    model.set_adapter("second")
    model.delete_adapter("default")


def switch(model: PeftModel, folder: Path) -> None:
    model.set_adapter("second")


def switch_both_on(model: PeftModel, folder: Path) -> None:
    model.base_model.set_adapter(["default", "second"])


def merge(model: PeftModel, folder: Path) -> None:
    model.merge_adapter()


def merge_and_unmerge(model: PeftModel, folder: Path) -> None:
    model.merge_adapter()
    model.unmerge_adapter()


def disable(model: PeftModel, folder: Path) -> None:
    model.base_model.disable_adapter_layers()


def unload(model: PeftModel, folder: Path) -> None:
    model.base_model.unload()


def replace_parameters(model: PeftModel, folder: Path) -> None:
    for linear in (q_proj(model).lora_A["default"], q_proj(model).lora_B["default"], q_proj(model).base_layer):
        linear.weight = replaced(linear.weight)


def replace_data(model: PeftModel, folder: Path) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 2


def other_adapter(folder: Path, **settings: Any) -> str:
    """Save another adapter for the same model, and return its folder."""
    base = tiny_llama(tie_word_embeddings=False)
    lora(base, seed=5, target_modules=MODULES, init_lora_weights=False, **settings).save_pretrained(folder)
    return str(folder)


def load(model: PeftModel, folder: Path) -> None:
    model.load_adapter(other_adapter(folder, r=3), "loaded", is_trainable=True)
    model.set_adapter("loaded")


def load_in_place(model: PeftModel, folder: Path) -> None:
    model.load_adapter(other_adapter(folder), "default", is_trainable=True)


def resize(model: PeftModel, folder: Path) -> None:
    model.base_model.model.resize_token_embeddings(56)


def rescale(model: PeftModel, folder: Path) -> None:
    q_proj(model).scaling["default"] *= 3


def halve(model: PeftModel, folder: Path) -> None:
    model.half()


def double(model: PeftModel, folder: Path) -> None:
    model.to(torch.float64)


def thaw(model: PeftModel, folder: Path) -> None:
    first_layer(model).input_layernorm.weight.requires_grad_(True)


def freeze(model: PeftModel, folder: Path) -> None:
    q_proj(model).requires_grad_(False)


def tie(model: PeftModel, folder: Path) -> None:
    inner = model.base_model.model
    inner.lm_head.weight = inner.model.embed_tokens.weight


def replace_a_module(model: PeftModel, folder: Path) -> None:
    first_layer(model).self_attn.q_proj = nn.Linear(32, 32, bias=False).requires_grad_(False)


def share_a_module(model: PeftModel, folder: Path) -> None:
    first_layer(model).self_attn.q_proj = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")


def add_a_parameter(model: PeftModel, folder: Path) -> None:
    first_layer(model).gate = nn.Parameter(torch.ones(3))


def wrap_a_module(model: PeftModel, folder: Path) -> None:
    first_layer(model).mlp = torch.compile(first_layer(model).mlp)


def swap_names(model: PeftModel, folder: Path) -> None:
    modules = first_layer(model)._modules
    modules["input_layernorm"], modules["post_attention_layernorm"] = (
        modules["post_attention_layernorm"],
        modules["input_layernorm"],
    )


def change_class(model: PeftModel, folder: Path) -> None:
    layer = q_proj(model).base_layer
    q_proj(model).__class__ = type("Plain", (nn.Module,), {"forward": lambda self, x: layer(x)})


CHANGES = [
    add,
    delete,
    delete_the_trained,
    switch,
    switch_both_on,
    merge,
    merge_and_unmerge,
    disable,
    unload,
    replace_parameters,
    replace_data,
    load,
    load_in_place,
    resize,
    rescale,
    halve,
    double,
    thaw,
    freeze,
    tie,
    replace_a_module,
    share_a_module,
    add_a_parameter,
    wrap_a_module,
    swap_names,
    change_class,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_any_change_a_kept_layout_gives_what_a_new_walk_gives(
    change: Callable[[PeftModel, Path], None], tmp_path: Path
) -> None:
    model = two()
    monitor = Monitor([low_rank(tiny_llama(tie_word_embeddings=False), 5)])
    monitor.start(model)
    move(model, seed=1)
    before = monitor.measure(model)
    change(model, tmp_path)
    move(model, seed=2)
    anew = copy.copy(monitor)
    anew._layout = None
    assert described(ModelView(model, layout=monitor._layout)) == described(ModelView(model))
    now, wanted = outcome(lambda: monitor.measure(model)), outcome(lambda: anew.measure(model))
    assert now == wanted
    assert not isinstance(now, Reading) or now.update_norm != before.update_norm


def test_a_model_that_moves_to_another_device_is_read_there() -> None:
    model = two()
    layout = ModelView(model).layout
    model.to("meta")
    view = ModelView(model, layout=layout)
    assert {piece.values.device.type for local in view.parameters.values() for piece in local.pieces} == {"meta"}


def test_a_layout_is_kept_while_only_values_and_settings_change() -> None:
    model = two()
    layout = ModelView(model).layout
    for change in (switch, switch_both_on, rescale, freeze, thaw, replace_data):
        change(model, Path())
        move(model, seed=3)
        assert ModelView(model, layout=layout).layout is layout
    q_proj(model).lora_A["default"].weight = replaced(q_proj(model).lora_A["default"].weight)
    assert ModelView(model, layout=layout).layout is not layout


def test_copies_of_whole_modules_are_those_of_the_adapter_that_is_active_now() -> None:
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = lora(tiny_llama(tie_word_embeddings=False), **config)
    model.add_adapter("second", LoraConfig(**config))
    layout = ModelView(model).layout
    model.set_adapter("second")
    view = ModelView(model, layout=layout)
    assert view.layout is layout
    assert described(view) == described(ModelView(model))
    assert [name.split(".")[-2] for name in view.copies] == ["second"]


def test_an_adapter_that_changes_no_weights_is_refused_once_it_is_active() -> None:
    model = lora(tiny_llama(), target_modules=["q_proj"])
    layout = ModelView(model).layout
    model.peft_config["default"] = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(WeightWatchError, match="PROMPT_TUNING"):
        ModelView(model, layout=layout)


@pytest.mark.parametrize("mark", ["tensor_model_parallel", "ds_id"])
def test_a_parameter_that_an_engine_marks_in_place_is_no_longer_read_as_a_whole(mark: str) -> None:
    model = two()
    layout = ModelView(model).layout
    setattr(q_proj(model).lora_A["default"].weight, mark, 1)
    with pytest.raises((WeightWatchError, AttributeError)):  # no engine is here that would have sharded it
        ModelView(model, layout=layout)


def test_a_model_within_another_is_found_anew() -> None:
    model = two()
    layout = ModelView(model).layout
    view = ModelView(nn.DataParallel(model), layout=layout)
    assert view.layout is not layout
    assert [a.path for a in view.adapters] == [a.path for a in ModelView(model).adapters]


def test_a_layout_holds_no_model() -> None:
    model = two()
    layout = ModelView(model).layout
    watched = weakref.ref(q_proj(model))
    del model
    gc.collect()
    assert watched() is None
    assert layout.adapters


def test_a_layout_holds_for_other_objects_in_the_same_places() -> None:
    """Addresses are used again: an equal structure may be that of other objects, and their values are read."""
    model, other = two(), two()
    move(other, seed=4)
    layout = replace(ModelView(model).layout, structure=ModuleTree.of(other).structure)
    view = ModelView(other, layout=layout)
    assert view.layout is layout
    assert described(view) == described(ModelView(other))


def shared() -> nn.Module:
    """Return a model that holds two modules under two names each."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["again"] = nn.ModuleDict({"a": model["a"], "b": model["b"]})
    return model


def rename_a_module(model: Any) -> None:
    model["c"] = model._modules.pop("b")


def rename_a_parameter(model: Any) -> None:
    model["b"].gain = model["b"]._parameters.pop("bias")


def hold_another_known_module(model: Any) -> None:
    model["again"]["b"] = model["a"]


@pytest.mark.parametrize("change", [rename_a_module, rename_a_parameter, hold_another_known_module])
def test_the_same_objects_under_other_names_are_another_structure(change: Callable[[Any], None]) -> None:
    model = shared()
    layout = ModelView(model).layout
    assert ModelView(model, layout=layout).layout is layout
    change(model)
    view = ModelView(model, layout=layout)
    assert view.layout is not layout
    assert list(view.parameters) == [name for name, _ in model.named_parameters()]


def test_names_are_those_of_torch_shared_and_cyclic_modules_included() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.Linear(2, 3)), "b": shared, "c": nn.Bilinear(2, 2, 1)})
    model["c"].weight2 = shared.weight
    model["c"].none = None
    model["a"].add_module("above", model["c"])
    model["c"].add_module("back", model["a"])
    tree = ModuleTree.of(model)
    layout = Layout.of(model, tree)
    found = {name: tree.parameters[place] for name, place in layout.parameters.items()}
    wanted = dict(model.named_parameters())
    assert list(found) == list(wanted)
    assert all(found[name] is wanted[name] for name in wanted)
    assert {id(module) for module in tree.modules} == {id(module) for module in model.modules()}
