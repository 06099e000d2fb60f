import itertools

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.support.models import lora, tiny_llama
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.names import by_canonical_name, canonical, module_of, unwrapped

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
        "base_model.model.module._orig_mod.model.layers.0.self_attn.q_proj.base_layer.base_layer.weight",
        "_fsdp_wrapped_module.base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.base_layer.weight",
        "module.pretrained_model.base_model.model._orig_mod.model.layers.0.self_attn.q_proj.weight",
        "base_model.model.pretrained_model.module.model.layers.0.self_attn._checkpoint_wrapped_module.q_proj.weight",
        "base_model.model.model.layers.0.self_attn.modules_to_save.default._fsdp_wrapped_module.q_proj.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.token_adapter.base_layer.weight",
    ],
)
def test_one_weight_has_one_name_whatever_wraps_the_model(wrapped: str) -> None:
    assert canonical(wrapped) == PLAIN


WRAPPERS = ["module", "_orig_mod", "_fsdp_wrapped_module", "base_model.model", "pretrained_model"]


@pytest.mark.parametrize("order", itertools.permutations(WRAPPERS, 3))
def test_wrappers_may_be_nested_in_any_order(order: tuple[str, ...]) -> None:
    assert canonical(".".join((*order, PLAIN))) == PLAIN


@pytest.mark.parametrize(
    "own",
    [
        "model.module.layers.0.weight",
        "encoder.pretrained_model.proj.weight",
        "model.base_model.model.proj.weight",
        "model.token_adapter.proj.weight",
        "model.my_base_layer.weight",
        "model.not_original_module.weight",
        "model.module",
    ],
)
def test_a_models_own_words_stay(own: str) -> None:
    assert canonical(own) == own


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        (f"module.{PLAIN}", PLAIN),
        (f"module._orig_mod.module.{PLAIN}", PLAIN),
        ("_orig_mod.base_model.model.lm_head.base_layer.weight", "base_model.model.lm_head.base_layer.weight"),
        ("pretrained_model.layers.0._fsdp_wrapped_module.weight", "pretrained_model.layers.0.weight"),
        ("lm_head.modules_to_save.default._checkpoint_wrapped_module.weight", "lm_head.modules_to_save.default.weight"),
    ],
)
def test_what_the_engine_adds_can_be_taken_out_alone(wrapped: str, plain: str) -> None:
    assert unwrapped(wrapped) == plain


def test_names_of_real_wrappers_are_those_of_the_plain_model() -> None:
    plain = tiny_llama(tie_word_embeddings=False)
    names = {name for name, _ in plain.named_parameters()}
    adapted = lora(plain, modules_to_save=["lm_head"], trainable_token_indices=[1, 2])
    adapted.model.model.layers[0] = checkpoint_wrapper(adapted.model.model.layers[0])
    wrapped = nn.DataParallel(torch.compile(adapted))
    own = [name for name, _ in wrapped.named_parameters() if "lora_" not in name and "trainable_tokens" not in name]
    assert {canonical(name) for name in own} == names
    assert {unwrapped(name) for name, _ in wrapped.named_parameters()} == {
        name for name, _ in lora(plain, modules_to_save=["lm_head"], trainable_token_indices=[1, 2]).named_parameters()
    }


@pytest.mark.parametrize("segment", ["modules_to_save.default", "modules_to_save.second", "original_module"])
def test_copies_of_modules_to_save_go_by_the_name_of_the_module(segment: str) -> None:
    assert canonical(f"base_model.model.lm_head.{segment}.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "q_proj"),
        ("model.layers.2.mlp.experts.7.down_proj.weight", "down_proj"),
        ("model.layers.2.mlp.experts.gate_up_proj", "gate_up_proj"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_target_module_is_the_last_named_one_above_the_parameter(name: str, module: str) -> None:
    assert module_of(name) == module


def test_two_names_of_one_weight_are_one_if_they_have_the_same_values_and_refused_otherwise() -> None:
    weight = torch.randn(3, 2)
    found = by_canonical_name({PLAIN: weight, f"_orig_mod.{PLAIN}": weight.clone()}, "The dict")
    assert list(found) == [PLAIN]
    with pytest.raises(WeightWatchError, match=r"The dict has two different tensors for lm_head\.weight: .*original"):
        by_canonical_name(
            {"lm_head.original_module.weight": weight, "lm_head.modules_to_save.default.weight": weight + 1}, "The dict"
        )
