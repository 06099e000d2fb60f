"""Parameter names: one spelling for a weight whatever wraps the model, and the layer and module it belongs to."""

import re

# Wrappers put their own segments into parameter names; the weight underneath is the same.
_ENGINE = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LEADING_ENGINE = re.compile(r"^(?:module\.)+")
_BENEATH = re.compile(r"\b(?:base_layer|original_module|token_adapter)\.")
_SAVED_COPY = re.compile(r"\bmodules_to_save\.[^.]+\.")
_LEADING = re.compile(r"^(?:module\.|base_model\.model\.|pretrained_model\.)+")
_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_LEAVES = {"weight", "bias"}


def unwrapped(name: str) -> str:
    """Return the name that a parameter has in the model given to the training engine: PEFT's segments stay.

    Example:
        >>> unwrapped("module._fsdp_wrapped_module.base_model.model.lm_head.base_layer.weight")
        'base_model.model.lm_head.base_layer.weight'
    """
    return _LEADING_ENGINE.sub("", _ENGINE.sub("", name))


def canonical(name: str) -> str:
    """Return the name that the plain base model gives to a parameter.

    Segments that DDP, FSDP, ``torch.compile``, activation checkpointing, PEFT and value heads add are taken out.

    Args:
        name: A name from ``named_parameters()`` or from a state dict.

    Example:
        >>> canonical("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    name = _SAVED_COPY.sub("", _BENEATH.sub("", unwrapped(name)))
    return _LEADING.sub("", name)


def layer_of(name: str) -> int | None:
    """Return the index of the layer that a parameter belongs to, or None outside the layers (embeddings, head).

    Example:
        >>> layer_of("model.layers.3.mlp.experts.7.down_proj.weight"), layer_of("lm_head.weight")
        (3, None)
    """
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def module_of(name: str) -> str:
    """Return the kind of module that a parameter belongs to: the last named module above it.

    Example:
        >>> module_of("model.layers.3.self_attn.q_proj.weight"), module_of("model.norm.weight")
        ('q_proj', 'norm')
    """
    parts = [part for part in name.split(".") if not part.isdigit()]
    if len(parts) > 1 and parts[-1] in _LEAVES:
        parts.pop()
    return parts[-1]
