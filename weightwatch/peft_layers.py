"""PEFT's layers inside a model: which there are, and what they add to the weights, as factors.

PEFT is imported only where a model can have been made with it.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from weightwatch.vectors.adapter import KEEPS_BASE
from weightwatch.vectors.delta import LowRank
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.names import canonical


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the PEFT layers of a model, by name; PEFT is imported only if the model can have been made with it."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            if not isinstance(module, LoraLayer) or isinstance(module, AdaLoraLayer):
                raise WeightWatchError(
                    f"{path} is a {type(module).__module__.split('.')[2]} adapter, which is not supported: "
                    "only LoRA's update is known exactly. Train with LoraConfig."
                )
            yield path, module


def saved_copies(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the trained copy and the frozen original of each parameter under PEFT's ``modules_to_save``."""
    if "peft" not in sys.modules:
        return
    from peft.utils.other import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for adapter in module.active_adapters[:1]:
                originals = dict(module.original_module.named_parameters())
                for name, copy in module.modules_to_save[adapter].named_parameters():
                    yield copy, originals[name]


def own_parameters(module: Any) -> set[int]:
    """Return the ids of a PEFT layer's own parameters: not those of the layer beneath (whose bias may train)."""
    return {id(p) for p in module.parameters()} - {id(p) for p in module.get_base_layer().parameters()}


def weight_beneath(module: Any) -> Tensor | None:
    """Return the base's weight under a PEFT layer; None where it has no plain one."""
    weight = getattr(module.get_base_layer(), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def lora_change(path: str, module: Any, every: bool) -> LowRank | None:
    """Return what the adapters of one LoRA layer add to its weight; None if no trained adapter is active there.

    Args:
        path: The layer's name, for messages.
        module: A ``peft`` ``LoraLayer``.
        every: Count frozen adapters too.

    Raises:
        WeightWatchError: The layer's change is not ``scaling · B A`` (DoRA, LoRA with a bias, convolutions, experts).
    """
    lefts, rights, embedding = [], [], False
    for adapter in module.active_adapters:
        if adapter in module.lora_embedding_A:
            embedding = True
            a, b = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
        elif adapter in module.lora_A:
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        else:
            continue
        _require_plain(path, module, adapter, a)
        if every or a.requires_grad or b.requires_grad:
            lefts.append(b.detach().float() * module.scaling[adapter])
            rights.append(a.detach().float())
    if not lefts:
        return None
    left, right = (lefts[0], rights[0]) if len(lefts) == 1 else (torch.cat(lefts, 1), torch.cat(rights, 0))
    transposed = embedding or bool(getattr(module, "fan_in_fan_out", False))
    return LowRank(left, right, transposed, "left" if embedding else "right")


def start_factors(model: nn.Module) -> dict[str, LowRank]:
    """Return copies of the factors of trained adapters whose product is not zero now, by parameter name.

    Taken before the first step they are the part of θ₀ that adapters such as PiSSA, or one that is trained further,
    start with.
    """
    found = {}
    for path, module in lora_layers(model):
        change = lora_change(path, module, every=False)
        if change is not None and bool(change.left.any()) and bool(change.right.any()):
            cloned = LowRank(change.left.clone(), change.right.clone(), change.transposed, change.limited)
            found[f"{canonical(path + '.')}weight"] = cloned
    return found


def moved_copies(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained copies under ``modules_to_save`` that differ from their originals now, by name.

    Before the first step these are copies that are trained further: θ₀ is then the copy, not the original.
    """
    names = {id(p): canonical(n) for n, p in model.named_parameters()}
    return {names[id(copy)]: copy for copy, original in saved_copies(model) if not torch.equal(copy, original)}


def base_changing_start(model: nn.Module) -> str | None:
    """Return the ``init_lora_weights`` of an adapter that changed the base when it was made; None if none did."""
    kinds = (kind for module in model.modules() for kind in _starts(module))
    return next((kind for kind in kinds if kind not in KEEPS_BASE), None)


def _require_plain(path: str, module: Any, adapter: str, a: Tensor) -> None:
    reason = None
    if adapter in module.lora_variant:
        reason = type(module.lora_variant[adapter]).__name__
    elif module.lora_bias.get(adapter):
        reason = "lora_bias=True"
    elif type(module).__name__ == "ParamWrapper":
        reason = "target_parameters"
    elif type(module).__name__ == "MultiheadAttention" or a.ndim != 2:
        reason = type(module).__name__
    if reason:
        raise WeightWatchError(
            f"{path}: LoRA with {reason} is not supported, since its update is more than B A. "
            "Train with a plain LoraConfig on linear and embedding layers."
        )


def _starts(module: nn.Module) -> list[Any]:
    configs = getattr(module, "peft_config", None)
    return [getattr(c, "init_lora_weights", True) for c in configs.values()] if isinstance(configs, dict) else []
