"""PEFT's adapters inside a model: which layers have one, and how it changes the layer's weights.

PEFT is imported only where a model can have been made with it. Parameters go by the names that ``shards.held`` gives.

* LoRA and trained tokens: factors, whatever the weight beneath is stored as.
* DoRA on linear layers: factors, and by how much the rows of the weight are stretched.
* ``target_parameters``: the product of the factors, expert by expert.
* All others: what PEFT merges into a copy of the layer; see ``weightwatch.merging``.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightwatch.change import Change, Merged, Rescaled, Stretch
from weightwatch.merging import NotMergeableError, changed, difference, quantised
from weightwatch.shards import Held
from weightwatch.vectors.adapter import KEEPS_BASE
from weightwatch.vectors.delta import LowRank, wide
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.names import canonical, unwrapped

Values = Callable[[str], Tensor | None]
"""Gives the whole value of an adapter's parameter by its name; None where there is none."""

_REF = "ref"  # the frozen copy that TRL keeps of an adapter that is trained further
_BESIDE_WEIGHTS = ("XLORA", "SHADOW")  # a router over adapters, a model beside the model
_ROWS = 1024  # of a product that is multiplied out at a time
_OUT = "Train with LoRA, DoRA or another adapter that PEFT can merge, or train the weights themselves."


@dataclass(frozen=True)
class Layer:
    """A layer with adapters.

    Attributes:
        path: Its name in the model.
        module: PEFT's layer.
        names: Names of the adapters' parameters, those in the layer with those in the model. Not of the layer beneath,
            whose bias may train.
        holders: Of each name in the layer, the adapter that it belongs to; not of what is no single adapter's.
        trained: The names in the model of those that are trained.
        sharded: A parameter of the adapters or of the layer beneath is spread over processes.
    """

    path: str
    module: Any
    names: Mapping[str, str]
    holders: Mapping[str, str]
    trained: frozenset[str]
    sharded: bool = False

    @property
    def own(self) -> tuple[str, ...]:
        """The adapters' parameters by their names in the model."""
        return tuple(self.names.values())

    @property
    def weight(self) -> str:
        """Name of the weight beneath."""
        return self.beneath(getattr(self.module, "parameter_name", "weight"))

    def beneath(self, name: str) -> str:
        """Return the name in the plain model of a parameter of the layer beneath."""
        return canonical(f"{self.path}.base_layer.{name}")

    def adapters(self, every: bool) -> list[str]:
        """Return the active adapters of this layer whose change counts: those that are trained, or all."""
        trained = {holder for local, holder in self.holders.items() if every or self.names[local] in self.trained}
        return [adapter for adapter in self.module.active_adapters if adapter in trained]

    def with_values(self, adapters: Sequence[str], value: Values) -> list[str]:
        """Return those of some adapters that have values."""
        have = {holder for local, holder in self.holders.items() if value(self.names[local]) is not None}
        return [adapter for adapter in adapters if adapter in have]

    @property
    def active(self) -> list[str]:
        """The active adapters of this layer, in the order in which they act."""
        available = self.available
        return [adapter for adapter in self.module.active_adapters if adapter in available]

    @property
    def available(self) -> set[str]:
        """All adapters of this layer, the active ones or not."""
        return set(self.holders.values())


def layers(model: nn.Module, parameters: Mapping[str, Held]) -> Iterator[Layer]:
    """Yield the layers with adapters of their own; one that shares another's adapters and weight comes once.

    Args:
        model: Any model.
        parameters: What ``shards.held`` says of it.

    Raises:
        WeightWatchError: The model has adapters that change no weights.
    """
    if "peft" not in sys.modules:
        return
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    names = _names(model)
    known = set(names.values())
    flattened = [name for name in parameters if name not in known]  # by FSDP: no longer parameters of their modules
    seen: set[object] = set()
    for path, module in model.named_modules():
        if isinstance(module, PeftModel | AuxiliaryTrainingWrapper):
            _require_weights_change(path, module)
        if not isinstance(module, BaseTunerLayer) or id(module) in seen:
            continue
        inside = _inside(module)
        seen.update(id(part) for part in inside.values())
        named = [
            (local, p, names[id(p)])
            for local, p in module.named_parameters(remove_duplicate=False)
            if names.get(id(p)) in parameters
        ]
        own = {local: name for local, _, name in named}
        above = unwrapped(f"{path}.")
        own.update((n.removeprefix(above), n) for n in flattened if n.startswith(above))
        own = {local: name for local, name in own.items() if _is_own(local, inside)}
        shared = frozenset(own.values()), frozenset(id(p) for local, p, _ in named if local not in own)
        if not own or shared in seen:
            continue
        seen.add(shared)
        known = module._get_available_adapters()
        holders = {local: part for local in own for part in local.split(".")[1:] if part in known}
        yield Layer(
            unwrapped(f"{path}.").removesuffix("."),
            module,
            own,
            holders,
            frozenset(name for name in own.values() if parameters[name].trained),
            any(parameters[name].sharded for _, _, name in named if name in parameters),
        )


def _inside(module: Any) -> dict[str, nn.Module]:
    """Return the layers with adapters that attention's adapter has put inside it: they are merged with it."""
    if not isinstance(module.get_base_layer(), nn.MultiheadAttention):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {f"{path}.": part for path, part in module.named_modules() if path and isinstance(part, BaseTunerLayer)}


def _is_own(local: str, inside: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter is an adapter's, and not of the layer beneath."""
    above = next((path for path in inside if local.startswith(path)), "")
    return not local.removeprefix(above).startswith("base_layer.")


def saved_copies(model: nn.Module, parameters: Mapping[str, Held]) -> dict[str, str]:
    """Return the names of the active copies under PEFT's ``modules_to_save``, each with that of its original."""
    if "peft" not in sys.modules:
        return {}
    from peft.utils.other import ModulesToSaveWrapper

    names = _names(model)
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            originals = dict(module.original_module.named_parameters())
            for adapter in module.active_adapters[:1]:
                for local in originals:
                    copied = unwrapped(f"{path}.modules_to_save.{adapter}.{local}")
                    if copied in parameters:
                        found[copied] = names[id(originals[local])]
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
    adapters = layer.adapters(every)
    if layer.module.disable_adapters and layer.available.intersection(layer.module.active_adapters):
        raise WeightWatchError(
            f"The adapters of {layer.path} are disabled, so that the model is its base now. Enable them to measure."
        )
    if not adapters:
        return {}
    before: Values = start.get
    begun = layer.with_values(adapters, before)
    if not begun and _REF in layer.available and _REF not in layer.module.active_adapters:
        before, begun = now, [_REF]

    if _has_tokens(layer):
        return {layer.weight: _tokens(layer, now, adapters, before, begun)}
    stretched = _is_stretched(layer)
    if not all(_has_factors(layer, adapter) for adapter in (layer.active if stretched else adapters)):
        return _merged(layer, adapters, begun, start)
    if stretched:
        return {layer.weight: _rescaled(layer, now, adapters, before, begun)}
    of_experts = getattr(layer.module, "num_experts", 1) > 1
    found: dict[str, Change] = {layer.weight: (_experts if of_experts else _plain)(layer, now, adapters, before, begun)}
    if any(layer.module.lora_bias.get(adapter) for adapter in adapters):
        found[layer.beneath("bias")] = _bias(layer, now, adapters, before, begun)
    return found


def starts(found: Sequence[Layer], now: Values) -> dict[str, Tensor]:
    """Return copies of the adapters' parameters where a trained adapter's change is not zero now, by name.

    Taken before the first step they are the part of θ₀ that adapters such as PiSSA, or one that is trained further,
    start with.

    Raises:
        WeightWatchError: A change can't be told exactly.
    """
    copies = {}
    for layer in found:
        if any(_moves(change) for change in changes(layer, now, {}, every=False).values()):
            copies.update({name: value.clone() for name in layer.own if (value := now(name)) is not None})
    return copies


def start_factors(found: Sequence[Layer], start: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return what LoRA added to each weight at the start, where that was not zero, by the weights' names."""
    added = {}
    for layer in found:
        begun = layer.with_values(sorted(layer.available), start.get)
        if begun and all(_has_factors(layer, adapter) for adapter in begun):
            added[layer.weight] = _plain(layer, start.get, begun, start.get, [])
    return added


def changes_base(model: nn.Module) -> str | None:
    """Return the ``init_lora_weights`` of an adapter that changed the base when it was made; None if none did."""
    kinds = (kind for module in model.modules() for kind in _starts(module))
    return next((kind for kind in kinds if kind not in KEEPS_BASE), None)


def _names(model: nn.Module) -> dict[int, str]:
    """Return the names of a model's parameters by their identity: of one with several names, the first."""
    return {id(parameter): unwrapped(name) for name, parameter in model.named_parameters()}


def _has_tokens(layer: Layer) -> bool:
    """Whether a layer trains single rows of an embedding."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return isinstance(layer.module, TrainableTokensLayer)


def _tokens(layer: Layer, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> LowRank:
    """Return the change of trained rows as factors: which rows, and by how much. Other rows can't move."""
    module = layer.module
    places = {row: place for place, row in enumerate(sorted({r for a in adapters for r in module.token_indices[a]}))}
    base, originals = module.get_base_layer(), module.trainable_tokens_original
    size = base.num_embeddings if isinstance(base, nn.Embedding) else base.out_features
    width = originals[adapters[0]].shape[1]
    found = []
    for value, counted in ((now, adapters), (before, begun)):
        table = torch.zeros(len(places), width, device=originals[adapters[0]].device)
        for adapter, rows in [(a, originals[a]) for a in adapters] + [
            (a, _tokens_of(layer, value, a)) for a in counted
        ]:
            mine = [(places[row], i) for i, row in enumerate(module.token_indices[adapter]) if row in places]
            into, out = torch.tensor(mine, device=table.device).reshape(-1, 2).T
            table[into] = rows.to(table)[out]
        found.append(table)
    left = torch.zeros(size, len(places), device=found[0].device)
    left[list(places), list(places.values())] = 1.0
    return LowRank(left, found[0] - found[1], limited="left")


def _tokens_of(layer: Layer, value: Values, adapter: str) -> Tensor:
    return _known(value, layer.names[f"trainable_tokens_delta.{adapter}"])


def _known(value: Values, name: str) -> Tensor:
    found = value(name)
    if found is None:
        raise WeightWatchError(f"The start of {name} is missing where that of its layer is known. Start the run anew.")
    return found


def _is_dora(layer: Layer, adapter: str) -> bool:
    return type(layer.module.lora_variant.get(adapter)).__name__ == "DoraLinearVariant"


def _is_stretched(layer: Layer) -> bool:
    """Whether DoRA acts on a linear layer. It stretches what adapters before it have added, too."""
    return hasattr(layer.module, "lora_variant") and any(_is_dora(layer, adapter) for adapter in layer.active)


def _has_factors(layer: Layer, adapter: str) -> bool:
    """Whether an adapter adds a product of two factors to the weight, or is DoRA on such a product."""
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import MultiheadAttention, _ConvNd

    module = layer.module
    if not isinstance(module, LoraLayer) or isinstance(module, AdaLoraLayer | MultiheadAttention):
        return False
    variant = type(module.lora_variant.get(adapter)).__name__
    if adapter in module.lora_embedding_A:
        return variant in ("NoneType", "MiCAEmbeddingVariant")
    if _is_stretched(layer) and module.lora_bias.get(adapter):
        return False
    return not isinstance(module, _ConvNd) and variant in (
        "NoneType",
        "MiCALinearVariant",
        "DoraLinearVariant",
    )


def _plain(layer: Layer, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> LowRank:
    """Return the change by plain LoRA adapters."""
    pairs = {adapter: _pair(layer, now, adapter) for adapter in adapters}
    first = {adapter: _pair(layer, before, was) for adapter, was in _origins(adapters, begun).items()}
    left, right = _joined(pairs, first, adapters)
    embedding = adapters[0] in layer.module.lora_embedding_A
    by_left = embedding or all(_keeps_left(layer, adapter) for adapter in adapters)
    transposed = embedding or bool(getattr(layer.module, "fan_in_fan_out", False))
    return LowRank(left, right, transposed, "left" if by_left else "right")


def _keeps_left(layer: Layer, adapter: str) -> bool:
    """Whether an adapter trains A alone."""
    a, b = _halves(layer, adapter)
    frozen = a in layer.trained and b not in layer.trained
    return frozen or "MiCA" in type(layer.module.lora_variant.get(adapter)).__name__


def _origins(adapters: Sequence[str], begun: Sequence[str]) -> dict[str, str]:
    """Return, of the adapters whose start is known, which adapter holds it: itself, or TRL's copy."""
    return {adapters[0]: _REF} if list(begun) == [_REF] else {adapter: adapter for adapter in begun}


Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Left and right factors by adapter."""


def _joined(now: Pairs, start: Pairs, moving: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Join the factors of adapters to those of their change since the start.

    L R − L₀ R₀ = [L − L₀, L₀] [R; R − R₀] keeps small moves exact. Of an adapter that doesn't move, R is R₀.
    """
    lefts: list[Tensor] = []
    rights: list[Tensor] = []
    for adapter, (left, right) in now.items():
        if adapter not in start or not start[adapter][0].any():
            lefts, rights = [*lefts, left], [*rights, right]
            continue
        first = start[adapter][0].to(left), start[adapter][1].to(right)
        if adapter not in moving:
            lefts, rights = [*lefts, left - first[0]], [*rights, right]
        elif first[0].shape == left.shape:
            lefts, rights = [*lefts, left - first[0], first[0]], [*rights, right, right - first[1]]
        else:  # the rank was changed
            lefts, rights = [*lefts, left, -first[0]], [*rights, right, first[1]]
    return (lefts[0], rights[0]) if len(lefts) == 1 else (torch.cat(lefts, 1), torch.cat(rights))


def _pair(layer: Layer, value: Values, adapter: str) -> tuple[Tensor, Tensor]:
    """Return the factors of one adapter, with the scaling in the left one."""
    a, b = (_known(value, name) for name in _halves(layer, adapter))
    return b.float() * layer.module.scaling[adapter], a.float()


def _halves(layer: Layer, adapter: str) -> tuple[str, str]:
    """Return the names of an adapter's A and B."""
    if adapter in layer.module.lora_embedding_A:
        return layer.names[f"lora_embedding_A.{adapter}"], layer.names[f"lora_embedding_B.{adapter}"]
    return layer.names[f"lora_A.{adapter}.weight"], layer.names[f"lora_B.{adapter}.weight"]


def _rescaled(layer: Layer, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> Rescaled:
    """Return the change of a weight on which DoRA acts, by the adapters that count."""
    _require_base(layer, "DoRA")
    after = layer.active
    frozen = {adapter: adapter for adapter in after if adapter not in adapters}
    known = {**frozen, **_origins(adapters, begun)}
    was = {adapter: known[adapter] for adapter in after if adapter in known}

    def earlier(name: str) -> Tensor | None:
        found = before(name)
        return now(name) if found is None else found

    pairs = {adapter: _pair(layer, now, adapter) for adapter in after}
    first = {adapter: _pair(layer, earlier, origin) for adapter, origin in was.items()}

    def stretch() -> Stretch:
        weight = _base_weight(layer)
        rows, lefts = _stretched(layer, weight, now, {adapter: adapter for adapter in after})
        first_rows, first_lefts = _stretched(layer, weight, earlier, was)
        left, _ = _joined(
            {adapter: (lefts[adapter], right) for adapter, (_, right) in pairs.items()},
            {adapter: (first_lefts[adapter], right) for adapter, (_, right) in first.items()},
            adapters,
        )
        return Stretch(rows - first_rows, left, weight)

    transposed = bool(getattr(layer.module, "fan_in_fan_out", False))
    return Rescaled(LowRank(*_joined(pairs, first, adapters)), stretch, transposed)


def _stretched(
    layer: Layer, weight: Tensor, value: Values, adapters: Mapping[str, str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return by what adapters stretch the rows of W₀ together, and their left factors, stretched with it.

    Args:
        layer: The layer.
        weight: W₀, shape (out, in).
        value: The adapters' parameters.
        adapters: What to call each adapter, and its name in the layer, in the order in which they act.
    """
    rows = wide(torch.ones(len(weight), device=weight.device))
    lefts: dict[str, Tensor] = {}
    for key, adapter in adapters.items():
        lefts[key] = wide(_pair(layer, value, adapter)[0]).to(rows.device)
        if _is_dora(layer, adapter):
            gain = _gain(layer, weight, value, adapter).to(rows.device)
            rows, lefts = gain * rows, {key: gain[:, None] * left for key, left in lefts.items()}
    return rows, lefts


def _base_weight(layer: Layer) -> Tensor:
    """Return W₀, shape (out, in), unpacked where it is stored in a quantised form."""
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(layer.module.get_base_layer()).detach()
    return weight.T if getattr(layer.module, "fan_in_fan_out", False) else weight


def _gain(layer: Layer, weight: Tensor, value: Values, adapter: str) -> Tensor:
    """Return DoRA's m / ‖W₀ + B A‖, shape (out,), with the roundings of PEFT's forward pass."""
    a, b = (_known(value, name) for name in _halves(layer, adapter))
    dora = layer.module.lora_magnitude_vector[adapter]
    magnitude = _known(value, layer.names[f"lora_magnitude_vector.{adapter}.weight"])
    a, b = a.to(weight.device), b.to(weight.device)
    stored = weight.to(a.dtype)
    norm = dora.get_weight_norm(stored.T if dora.fan_in_fan_out else stored, b @ a, layer.module.scaling[adapter])
    return wide(magnitude.to(norm.device) / norm)


def _bias(layer: Layer, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> Merged:
    """Return the change of the bias beneath by the bias of LoRA's B."""

    def total(value: Values, counted: Sequence[str]) -> Tensor:
        own = [(a, layer.names[f"lora_B.{a}.bias"]) for a in counted if layer.module.lora_bias.get(a)]
        parts = [wide(_known(value, name)) * layer.module.scaling[adapter] for adapter, name in own]
        return torch.stack(parts).sum(0) if parts else torch.zeros(())

    (size,) = next(
        _known(now, layer.names[f"lora_B.{a}.bias"]).shape for a in adapters if layer.module.lora_bias.get(a)
    )
    return Merged((size,), lambda: total(now, adapters) - total(before, begun), _device(layer))


def _experts(layer: Layer, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> Merged:
    """Return the change of a weight of several experts, each of which has its own factors."""
    module = layer.module
    swapped = getattr(module, "_did_swap_in_out_features", False)  # stored as (experts, out, in)

    def stacked(value: Values, counted: Sequence[str], sign: int) -> Iterator[tuple[Tensor, Tensor]]:
        for adapter in counted:
            a, b = (_known(value, name) for name in _halves(layer, adapter))
            a, b = (wide(a), wide(b)) if begun else (a.float(), b.float())  # a small difference of two products
            left = b.reshape(len(b), -1, module.num_experts).permute(2, 0, 1) * (sign * module.scaling[adapter])
            yield left, a.reshape(module.num_experts, -1, a.shape[-1])

    def dense() -> Tensor:
        parts = [*stacked(now, adapters, 1), *stacked(before, begun, -1)]
        left, right = torch.cat([left for left, _ in parts], 2), torch.cat([right for _, right in parts], 1)
        return left @ right if swapped else right.mT @ left.mT

    return Merged(tuple(module.get_param().shape), dense, _device(layer))


def _merged(
    layer: Layer, adapters: Sequence[str], begun: Sequence[str], start: Mapping[str, Tensor]
) -> dict[str, Change]:
    """Return the changes that merging a copy of the layer tells."""
    _require_base(layer, _tuner(layer))
    module = layer.module
    if quantised(module):
        raise WeightWatchError(
            f"{layer.path} is a {_tuner(layer)} adapter on a quantised weight, whose change can't be told exactly. "
            "Train with LoRA or DoRA, or load the base unquantised."
        )
    after = layer.active
    first = [a for a in after if a not in adapters or a in begun] + [a for a in begun if a not in after]
    values = {local: start[name] for local, name in layer.names.items() if name in start}
    moved = [local for local, name in layer.names.items() if not layer.trained or name in layer.trained]
    try:
        names = changed(module, after, moved)
    except NotMergeableError as reason:
        raise WeightWatchError(
            f"{layer.path} is a {_tuner(layer)} adapter, which is not supported, since its effect can't be told as a "
            f"change of weights: {reason}. {_OUT}"
        ) from reason
    base = dict(module.get_base_layer().named_parameters())
    return {
        layer.beneath(name): Merged(
            tuple(base[name].shape), partial(difference, module, name, after, first, values), base[name].device
        )
        for name in names
    }


def _moves(change: Change) -> bool:
    """Whether a change is not zero."""
    match change:
        case LowRank(left=left, right=right):
            return not _is_zero(left, right)
        case Rescaled():
            stretch = change.stretch()
            return bool(stretch.rows.any()) or not _is_zero(stretch.left, change.factors.right)
        case Merged():
            return bool(change.dense().any())
        case _:
            raise TypeError(change)


def _is_zero(left: Tensor, right: Tensor) -> bool:
    """Whether a product of factors is zero; one that is zero but for rounding is not, as training moves that on."""
    return not any(bool((wide(rows) @ wide(right)).any()) for rows in left.split(_ROWS))


def _require_base(layer: Layer, tuner: str) -> None:
    """Make sure that the weight beneath an adapter can be read as it was."""
    if layer.sharded:
        raise WeightWatchError(
            f"{layer.path} is a {tuner} adapter on a weight that is spread over processes; its change is made of that "
            "weight, which is too large to be put together. Train with plain LoRA, or without sharding (DDP)."
        )
    if layer.module.merged_adapters:
        raise WeightWatchError(
            f"The {tuner} adapter of {layer.path} is merged into its weight now, so that θ₀ can't be read there. "
            "Unmerge it (unmerge_adapter) to measure."
        )


def _require_weights_change(path: str, module: nn.Module) -> None:
    """Make sure that a model's adapters change its weights."""
    from peft import PeftModel
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, PeftModel):
        for adapter, config in module.peft_config.items():
            beside = adapter in module.active_adapters and (config.is_prompt_learning or config.is_adaption_prompt)
            if beside or config.peft_type in _BESIDE_WEIGHTS:
                raise WeightWatchError(
                    f"The adapter {adapter!r} is of type {config.peft_type.value}, which is not supported, since it "
                    f"changes what the model is given or computes beside its weights. {_OUT}"
                )
    elif not isinstance(module, ModulesToSaveWrapper | TrainableTokensWrapper):
        raise WeightWatchError(
            f"{path} is trained through PEFT's {type(module).__name__}, which is not supported. Train it with "
            "modules_to_save."
        )


def _tuner(layer: Layer) -> str:
    """Return what PEFT calls the adapter of a layer."""
    module = layer.module
    name = type(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
    parts = [] if type(module).__name__ in ("Linear", "Embedding") else [type(module).__name__]
    parts += sorted({type(v).__name__ for v in getattr(module, "lora_variant", {}).values()})
    return f"{name} ({', '.join(parts)})" if parts else name


def _device(layer: Layer) -> torch.device:
    found: torch.device = next(layer.module.parameters()).device
    return found


def _starts(module: nn.Module) -> list[Any]:
    configs = getattr(module, "peft_config", None)
    return [getattr(c, "init_lora_weights", True) for c in configs.values()] if isinstance(configs, dict) else []
