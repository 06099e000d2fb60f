"""What LoRA and DoRA change, as factors.

Every function takes a layer, the adapters' parameters now and the adapters that count, and of their start: their
parameters then, and those of them whose start is known.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from weightwatch.update.change import Merged, Rescaled, Stretch
from weightwatch.update.peft.modules import AdapterModule, Values
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide

REF = "ref"
"""The frozen copy that TRL keeps of an adapter that is trained further."""

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Left and right factors by adapter."""


def has_factors(layer: AdapterModule, adapter: str) -> bool:
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
    if is_stretched(layer) and module.lora_bias.get(adapter):
        return False
    return not isinstance(module, _ConvNd) and variant in ("NoneType", "MiCALinearVariant", "DoraLinearVariant")


def is_stretched(layer: AdapterModule) -> bool:
    """Whether DoRA acts on a linear layer. It stretches what adapters before it have added, too."""
    return hasattr(layer.module, "lora_variant") and any(_is_dora(layer, adapter) for adapter in layer.active)


def plain(layer: AdapterModule, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> LowRank:
    """Return the change by plain LoRA adapters."""
    scale = layer.module.scaling[adapters[0]] or 1.0
    pairs = {adapter: _pair(layer, now, adapter, scale) for adapter in adapters}
    first = {adapter: _pair(layer, before, was, scale) for adapter, was in _origins(adapters, begun).items()}
    left, right = _joined(pairs, first, adapters)
    embedding = adapters[0] in layer.module.lora_embedding_A
    by_left = embedding or all(_keeps_left(layer, adapter) for adapter in adapters)
    transposed = embedding or bool(getattr(layer.module, "fan_in_fan_out", False))
    return LowRank(left, right, transposed, "left" if by_left else "right", scale)


def rescaled(
    layer: AdapterModule, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]
) -> Rescaled:
    """Return the change of a weight on which DoRA acts, by the adapters that count."""
    require_base(layer, "DoRA")
    after = layer.active
    frozen = {adapter: adapter for adapter in after if adapter not in adapters}
    held = {**frozen, **_origins(adapters, begun)}
    was = {adapter: held[adapter] for adapter in after if adapter in held}

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


def experts(layer: AdapterModule, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> Merged:
    """Return the change of a weight of several experts, each of which has its own factors."""
    module = layer.module
    swapped = getattr(module, "_did_swap_in_out_features", False)  # stored as (experts, out, in)

    def stacked(value: Values, counted: Sequence[str], sign: int) -> Iterator[tuple[Tensor, Tensor]]:
        for adapter in counted:
            a, b = (known(value, name) for name in _halves(layer, adapter))
            a, b = (wide(a), wide(b)) if begun else (a.float(), b.float())  # a small difference of two products
            left = b.reshape(len(b), -1, module.num_experts).permute(2, 0, 1) * (sign * module.scaling[adapter])
            yield left, a.reshape(module.num_experts, -1, a.shape[-1])

    def dense() -> Tensor:
        parts = [*stacked(now, adapters, 1), *stacked(before, begun, -1)]
        left, right = torch.cat([left for left, _ in parts], 2), torch.cat([right for _, right in parts], 1)
        return left @ right if swapped else right.mT @ left.mT

    return Merged(tuple(module.get_param().shape), dense, _device(layer))


def bias(layer: AdapterModule, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]) -> Merged:
    """Return the change of the bias beneath by the bias of LoRA's B."""

    def total(value: Values, counted: Sequence[str]) -> Tensor:
        own = [(a, layer.names[f"lora_B.{a}.bias"]) for a in counted if layer.module.lora_bias.get(a)]
        parts = [wide(known(value, name)) * layer.module.scaling[adapter] for adapter, name in own]
        return torch.stack(parts).sum(0) if parts else torch.zeros(())

    (size,) = next(known(now, layer.names[f"lora_B.{a}.bias"]).shape for a in adapters if layer.module.lora_bias.get(a))
    return Merged((size,), lambda: total(now, adapters) - total(before, begun), _device(layer))


def known(value: Values, name: str) -> Tensor:
    """Return the value of a parameter that has to have one.

    Raises:
        WeightWatchError: It has none.
    """
    found = value(name)
    if found is None:
        raise WeightWatchError(f"The start of {name} is missing where that of its layer is known. Start the run anew.")
    return found


def require_base(layer: AdapterModule, tuner: str) -> None:
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


def _is_dora(layer: AdapterModule, adapter: str) -> bool:
    return type(layer.module.lora_variant.get(adapter)).__name__ == "DoraLinearVariant"


def _keeps_left(layer: AdapterModule, adapter: str) -> bool:
    """Whether an adapter trains A alone."""
    a, b = _halves(layer, adapter)
    frozen = a in layer.trained and b not in layer.trained
    return frozen or "MiCA" in type(layer.module.lora_variant.get(adapter)).__name__


def _origins(adapters: Sequence[str], begun: Sequence[str]) -> dict[str, str]:
    """Return, of the adapters whose start is known, which adapter holds it: itself, or TRL's copy."""
    return {adapters[0]: REF} if list(begun) == [REF] else {adapter: adapter for adapter in begun}


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


def _pair(layer: AdapterModule, value: Values, adapter: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the factors of one adapter: of its change over ``scale``, so that its own scaling copies nothing."""
    a, b = (known(value, name).float() for name in _halves(layer, adapter))
    scaling = layer.module.scaling[adapter] / scale
    return (b, a) if scaling == 1 else (b * scaling, a)


def _halves(layer: AdapterModule, adapter: str) -> tuple[str, str]:
    """Return the names of an adapter's A and B."""
    if adapter in layer.module.lora_embedding_A:
        return layer.names[f"lora_embedding_A.{adapter}"], layer.names[f"lora_embedding_B.{adapter}"]
    return layer.names[f"lora_A.{adapter}.weight"], layer.names[f"lora_B.{adapter}.weight"]


def _stretched(
    layer: AdapterModule, weight: Tensor, value: Values, adapters: Mapping[str, str]
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


def _base_weight(layer: AdapterModule) -> Tensor:
    """Return W₀, shape (out, in), unpacked where it is stored in a quantised form."""
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(layer.module.get_base_layer()).detach()
    return weight.T if getattr(layer.module, "fan_in_fan_out", False) else weight


def _gain(layer: AdapterModule, weight: Tensor, value: Values, adapter: str) -> Tensor:
    """Return DoRA's m / ‖W₀ + B A‖, shape (out,), with the roundings of PEFT's forward pass."""
    a, b = (known(value, name) for name in _halves(layer, adapter))
    dora = layer.module.lora_magnitude_vector[adapter]
    magnitude = known(value, layer.names[f"lora_magnitude_vector.{adapter}.weight"])
    a, b = a.to(weight.device), b.to(weight.device)
    stored = weight.to(a.dtype)
    norm = dora.get_weight_norm(stored.T if dora.fan_in_fan_out else stored, b @ a, layer.module.scaling[adapter])
    return wide(magnitude.to(norm.device) / norm)


def _device(layer: AdapterModule) -> torch.device:
    found: torch.device = next(layer.module.parameters()).device
    return found
