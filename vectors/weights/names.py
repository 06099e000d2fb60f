"""Parameter names: one name for each weight, however the model is wrapped."""

import re
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError

# Wrappers add segments to parameter names. A word that a model may use itself is removed only where a wrapper puts it:
# in front of the name, or before another segment of the wrapper.
_ENGINE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = re.compile(r"^(?:module\.)+")
_ADAPTED = re.compile(
    r"(?:^|(?<=\.))(?:token_adapter\.(?=base_layer\.|trainable_tokens_)"
    r"|base_layer\.|original_module\.|modules_to_save\.[^.]+\.)"
)
_IN_FRONT = re.compile(r"^(?:module\.|base_model\.model\.|pretrained_model\.)+")
_LEAVES = {"weight", "bias"}
_KNOWN = 1 << 16  # size of the cache: every check asks for the same names


@lru_cache(_KNOWN)
def unwrapped(name: str) -> str:
    """Return a parameter's name without the segments of DataParallel, DDP, FSDP, ``torch.compile`` and checkpointing.

    Example:
        >>> unwrapped("module._orig_mod.base_model.model.lm_head.weight")
        'base_model.model.lm_head.weight'
    """
    return _PARALLEL.sub("", _ENGINE.sub("", name))


@lru_cache(_KNOWN)
def canonical(name: str) -> str:
    """Return a parameter's name in the plain base model.

    The segments of the engines' wrappers (see ``unwrapped``), of PEFT and of value heads are removed.

    Args:
        name: A name from ``named_parameters()`` or from a state dict.

    Example:
        >>> canonical("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    return _IN_FRONT.sub("", _ADAPTED.sub("", unwrapped(name)))


def by_canonical_name(tensors: Mapping[str, Tensor], title: str) -> dict[str, Tensor]:
    """Return tensors by their names in the plain base model.

    Args:
        tensors: The tensors, such as a state dict.
        title: What they are, for messages.

    Raises:
        WeightWatchError: Two different tensors have one name there.
    """
    found: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = canonical(key)
        if name in found and not (found[name] is tensor or torch.equal(found[name], tensor)):
            raise WeightWatchError(
                f"{title} has two different tensors for {name}: {first[name]} and {key}. Pass the weights of one "
                "model, each once."
            )
        found[name], first[name] = tensor, key
    return found


def indexed(name: str) -> bool:
    """Whether a parameter belongs to a list of layers or experts, unlike an embedding, a head or the last norm.

    Example:
        >>> indexed("model.layers.3.mlp.down_proj.weight"), indexed("lm_head.weight")
        (True, False)
    """
    return any(part.isdecimal() for part in name.split("."))


def is_resized(name: str, old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether two shapes of a tensor differ by a resized vocabulary: an embedding or a head with other rows.

    Example:
        >>> is_resized("lm_head.weight", (64, 32), (70, 32)), is_resized("lm_head.weight", (64, 32), (64, 48))
        (True, False)
    """
    return not indexed(name) and len(old) == len(new) and old[:1] != new[:1] and old[1:] == new[1:]


def module_of(name: str) -> str:
    """Return the name of a parameter's module in PEFT's ``target_modules``: the last segment that is not a number.

    Example:
        >>> module_of("model.layers.3.self_attn.q_proj.weight"), module_of("model.norm.weight")
        ('q_proj', 'norm')
    """
    parts = [part for part in name.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    return parts[-1]
