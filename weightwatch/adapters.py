"""PEFT's adapters inside a model: which layers have one, and how it changes the layer's weights.

PEFT is imported only where a model can have been made with it. Parameters go by the names that ``shards.held`` gives.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightwatch.change import Change
from weightwatch.shards import Held
from weightwatch.vectors.adapter import KEEPS_BASE
from weightwatch.vectors.delta import LowRank
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.names import canonical, unwrapped

Values = Callable[[str], Tensor | None]
"""Gives the whole value of an adapter's parameter by its name; None where there is none."""

_REF = "ref"  # the frozen copy that TRL keeps of an adapter that is trained further


@dataclass(frozen=True)
class Layer:
    """A layer with adapters.

    Attributes:
        path: Its name in the model.
        module: PEFT's layer.
        own: Names of the adapters' parameters: not those of the layer beneath, whose bias may train.
        trained: Those of them that are trained.
    """

    path: str
    module: Any
    own: tuple[str, ...]
    trained: frozenset[str]

    @property
    def weight(self) -> str:
        """Name of the weight beneath."""
        return f"{canonical(self.path + '.')}weight"


def layers(model: nn.Module, parameters: Mapping[str, Held]) -> Iterator[Layer]:
    """Yield the layers with adapters of their own; one that shares all of another's comes once.

    Args:
        model: Any model.
        parameters: What ``shards.held`` says of it.
    """
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {
        unwrapped(f"{path}.").removesuffix("."): module
        for path, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    own: dict[str, list[str]] = {path: [] for path in found}
    for name in parameters:
        parts = name.split(".")
        above = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        path = next((path for path in above if path in found), None)
        if path is not None and not name.startswith(f"{path}.base_layer."):
            own[path].append(name)
    for path, names in own.items():
        if names:
            trained = frozenset(name for name in names if parameters[name].trained)
            yield Layer(path, found[path], tuple(names), trained)


def saved_copies(model: nn.Module, parameters: Mapping[str, Held]) -> dict[str, str]:
    """Return the names of the trained copies under PEFT's ``modules_to_save``, each with its original's."""
    if "peft" not in sys.modules:
        return {}
    from peft.utils.other import ModulesToSaveWrapper

    found = {}
    first = {
        id(parameter): unwrapped(name) for name, parameter in model.named_parameters()
    }  # of a tied head: its twin's
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            above = unwrapped(f"{path}.")
            originals = dict(module.original_module.named_parameters())
            for adapter in module.active_adapters[:1]:
                copies = f"{above}modules_to_save.{adapter}."
                for name in parameters:
                    if name.startswith(copies):
                        part = name.removeprefix(copies)
                        found[name] = first.get(id(originals.get(part)), f"{above}original_module.{part}")
    return found


def changes(layer: Layer, now: Values, start: Mapping[str, Tensor], every: bool) -> dict[str, Change]:
    """Return how the active adapters of a layer change its weights, by the weights' names.

    Args:
        layer: The layer.
        now: The adapters' parameters now.
        start: The adapters' parameters at the start of the run, where the layer's change was not zero then. Of other
            layers the start is the frozen copy that TRL keeps as the adapter ``ref``, if there is one, else zero.
        every: Count frozen adapters too.

    Returns:
        No change where no trained adapter is active.

    Raises:
        WeightWatchError: The change can't be told exactly.
    """
    _require_supported(layer)
    change = _lora(layer, now, every)
    if change is None:
        return {}
    before = _lora(layer, start.get, every)
    if before is None and _REF in layer.module.r and _REF not in layer.module.active_adapters:
        before = _lora(layer, lambda name: now(_of_ref(name, layer.module.active_adapters)), every)
        before = before if before is not None and _moved(before) else None
    return {layer.weight: change if before is None else _since(change, before)}


def starts(found: Sequence[Layer], now: Values) -> dict[str, Tensor]:
    """Return copies of the adapters' parameters where a trained adapter's change is not zero now, by name.

    Taken before the first step they are the part of θ₀ that adapters such as PiSSA, or one that is trained further,
    start with.
    """
    copies = {}
    for layer in found:
        change = _lora(layer, now, every=False)
        if change is not None and _moved(change):
            copies.update({name: value.clone() for name in layer.own if (value := now(name)) is not None})
    return copies


def start_factors(found: Sequence[Layer], start: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return what the adapters added to each weight at the start, where that was not zero, by the weights' names."""
    factors = {layer.weight: _lora(layer, start.get, True) for layer in found}
    return {name: change for name, change in factors.items() if change is not None}


def changes_base(model: nn.Module) -> str | None:
    """Return the ``init_lora_weights`` of an adapter that changed the base when it was made; None if none did."""
    kinds = (kind for module in model.modules() for kind in _starts(module))
    return next((kind for kind in kinds if kind not in KEEPS_BASE), None)


def _lora(layer: Layer, value: Values, every: bool) -> LowRank | None:
    """Return what the adapters of one LoRA layer add to its weight; None if no trained adapter is active there."""
    module, lefts, rights, embedding = layer.module, [], [], False
    for adapter in module.active_adapters:
        if adapter in module.lora_embedding_A:
            embedding = True
            a_name, b_name = (f"{layer.path}.lora_embedding_{half}.{adapter}" for half in "AB")
        elif adapter in module.lora_A:
            a_name, b_name = (f"{layer.path}.lora_{half}.{adapter}.weight" for half in "AB")
        else:
            continue
        a, b = value(a_name), value(b_name)
        if a is not None and b is not None and (every or a_name in layer.trained or b_name in layer.trained):
            lefts.append(b.float() * module.scaling[adapter])
            rights.append(a.float())
    if not lefts:
        return None
    left, right = (lefts[0], rights[0]) if len(lefts) == 1 else (torch.cat(lefts, 1), torch.cat(rights, 0))
    transposed = embedding or bool(getattr(module, "fan_in_fan_out", False))
    return LowRank(left, right, transposed, "left" if embedding else "right")


def _moved(change: LowRank) -> bool:
    """Whether a product is other than zero; if it is zero, its right factor is no part of what it is made of."""
    return bool(change.left.any()) and bool(change.right.any())


def _since(now: LowRank, start: LowRank) -> LowRank:
    """Subtract the start of an adapter: L R − L₀ R₀ = [L − L₀, L₀] [R; R − R₀], which keeps small moves exact."""
    left, right = start.left.to(now.left), start.right.to(now.right)
    if left.shape != now.left.shape or right.shape != now.right.shape:
        factors = torch.cat([now.left, -left], 1), torch.cat([now.right, right], 0)
    else:
        factors = torch.cat([now.left - left, left], 1), torch.cat([now.right, now.right - right], 0)
    return LowRank(*factors, now.transposed, now.limited)


def _of_ref(name: str, adapters: Sequence[str]) -> str:
    """Return the name that a parameter of an active adapter has in TRL's frozen copy."""
    parts = name.split(".")
    at = max(place for place, part in enumerate(parts) if part in adapters)
    return ".".join([*parts[:at], _REF, *parts[at + 1 :]])


def _require_supported(layer: Layer) -> None:
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer

    module = layer.module
    if not isinstance(module, LoraLayer) or isinstance(module, AdaLoraLayer):
        raise WeightWatchError(
            f"{layer.path} is a {type(module).__module__.split('.')[2]} adapter, which is not supported: "
            "only LoRA's update is known exactly. Train with LoraConfig."
        )
    for adapter in module.active_adapters:
        reason = None
        if adapter in module.lora_variant:
            reason = type(module.lora_variant[adapter]).__name__
        elif module.lora_bias.get(adapter):
            reason = "lora_bias=True"
        elif type(module).__name__ == "ParamWrapper":
            reason = "target_parameters"
        elif type(module).__name__ == "MultiheadAttention" or "Conv" in type(module).__name__:
            reason = type(module).__name__
        if reason:
            raise WeightWatchError(
                f"{layer.path}: LoRA with {reason} is not supported, since its update is more than B A. "
                "Train with a plain LoraConfig on linear and embedding layers."
            )


def _starts(module: nn.Module) -> list[Any]:
    configs = getattr(module, "peft_config", None)
    return [getattr(c, "init_lora_weights", True) for c in configs.values()] if isinstance(configs, dict) else []
