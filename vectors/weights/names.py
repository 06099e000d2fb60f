"""Parameter names: one spelling for a weight, whatever wraps the model."""

import re
from functools import lru_cache

# Wrappers put their own segments into parameter names; the weight underneath is the same. A word that a model may use
# itself counts only where its wrapper puts it: in front of everything, or before what else the wrapper adds.
_ENGINE = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = re.compile(r"^(?:module\.)+")
_ADAPTED = re.compile(
    r"(?:^|(?<=\.))(?:token_adapter\.(?=base_layer\.|trainable_tokens_)"
    r"|base_layer\.|original_module\.|modules_to_save\.[^.]+\.)"
)
_IN_FRONT = re.compile(r"^(?:module\.|base_model\.model\.|pretrained_model\.)+")
_LEAVES = {"weight", "bias"}
_KNOWN = 1 << 16  # names that are kept: every check asks for the same ones


@lru_cache(_KNOWN)
def unwrapped(name: str) -> str:
    """Return a parameter's name without what DataParallel, DDP, FSDP, ``torch.compile`` and checkpointing add to it.

    Example:
        >>> unwrapped("module._orig_mod.base_model.model.lm_head.weight")
        'base_model.model.lm_head.weight'
    """
    return _PARALLEL.sub("", _ENGINE.sub("", name))


@lru_cache(_KNOWN)
def canonical(name: str) -> str:
    """Return the name that the plain base model gives to a parameter.

    Segments of the engines' wrappers (see ``unwrapped``), of PEFT and of value heads are taken out.

    Args:
        name: A name from ``named_parameters()`` or from a state dict.

    Example:
        >>> canonical("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    return _IN_FRONT.sub("", _ADAPTED.sub("", unwrapped(name)))


def indexed(name: str) -> bool:
    """Whether a parameter lies in a list of layers or experts: not an embedding, a head or a last norm.

    Example:
        >>> indexed("model.layers.3.mlp.down_proj.weight"), indexed("lm_head.weight")
        (True, False)
    """
    return any(part.isdecimal() for part in name.split("."))


def module_of(name: str) -> str:
    """Return what PEFT's ``target_modules`` call the module of a parameter: the last named one above it.

    Example:
        >>> module_of("model.layers.3.self_attn.q_proj.weight"), module_of("model.norm.weight")
        ('q_proj', 'norm')
    """
    parts = [part for part in name.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    return parts[-1]
