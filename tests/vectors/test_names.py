import pytest

from weightwatch.vectors.names import canonical, layer_of, module_of, unwrapped

PLAIN = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "wrapped",
    [
        PLAIN,
        f"module.{PLAIN}",
        f"_orig_mod.{PLAIN}",
        f"module._orig_mod.{PLAIN}",
        f"_orig_mod.module.{PLAIN}",
        f"_fsdp_wrapped_module.{PLAIN}",
        "model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "module.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "_orig_mod.base_model.model.model.layers.0.self_attn.q_proj.weight",
        "pretrained_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
    ],
)
def test_one_weight_has_one_name_whatever_wraps_the_model(wrapped: str) -> None:
    assert canonical(wrapped) == PLAIN


@pytest.mark.parametrize("inner", [PLAIN, f"base_model.model.{PLAIN}", "base_model.model.lm_head.base_layer.weight"])
@pytest.mark.parametrize("outer", ["", "module.", "module.module.", "_orig_mod.module.", "_fsdp_wrapped_module."])
def test_without_the_engines_segments_the_adapters_stay(inner: str, outer: str) -> None:
    assert unwrapped(outer + inner) == inner
    assert unwrapped(outer + inner.replace("model.", "model._checkpoint_wrapped_module.")) == inner


@pytest.mark.parametrize("segment", ["modules_to_save.default", "modules_to_save.second", "original_module"])
def test_copies_of_modules_to_save_go_by_the_name_of_the_module(segment: str) -> None:
    assert canonical(f"base_model.model.lm_head.{segment}.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", 3, "q_proj"),
        ("transformer.h.11.attn.c_attn.bias", 11, "c_attn"),
        ("model.layers.2.mlp.experts.7.down_proj.weight", 2, "down_proj"),
        ("model.layers.2.mlp.experts.gate_up_proj", 2, "gate_up_proj"),
        ("model.embed_tokens.weight", None, "embed_tokens"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "lm_head"),
    ],
)
def test_a_parameter_belongs_to_a_layer_and_a_kind_of_module(name: str, layer: int | None, module: str) -> None:
    assert (layer_of(name), module_of(name)) == (layer, module)
