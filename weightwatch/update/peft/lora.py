"""Changes of weights by LoRA and DoRA, as factors.

``plain``, ``rescaled``, ``experts`` and ``bias`` take the same arguments:

* ``adapted``: the adapter module.
* ``now``: the adapters' parameters now.
* ``adapters``: the adapters whose change counts.
* ``before``: the adapters' parameters at the start.
* ``recorded``: the adapters whose start is recorded. The others started at zero. Some of them may no longer be active.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from weightwatch.update.change import Merged, Rescaled, Rescaling
from weightwatch.update.peft.modules import AdapterModule, Values
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide

REF = "ref"
"""Name of the frozen copy that TRL keeps of an adapter that is trained further."""

Names = Sequence[str]
"""Names of adapters."""
Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Left and right factor of each adapter."""


def has_factors(adapted: AdapterModule, adapter: str) -> bool:
    """Whether an adapter's change consists of two factors, plain or under DoRA."""
    module = adapted.module
    linear = _linear(module.__class__)
    if linear is None:
        return False
    variant = type(module.lora_variant.get(adapter)).__name__
    if adapter in module.lora_embedding_A:
        return variant in ("NoneType", "MiCAEmbeddingVariant")
    if module.lora_bias.get(adapter) and is_rescaled(adapted, adapted.active):
        return False
    return linear and variant in ("NoneType", "MiCALinearVariant", "DoraLinearVariant")


@cache
def _linear(kind: type) -> bool | None:
    """Whether LoRA of a class changes a matrix, not the kernel of a convolution; None if the class is another."""
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import MultiheadAttention, _ConvNd

    if not issubclass(kind, LoraLayer) or issubclass(kind, AdaLoraLayer | MultiheadAttention):
        return None
    return not issubclass(kind, _ConvNd)


def is_rescaled(adapted: AdapterModule, adapters: Names) -> bool:
    """Whether one of the adapters is DoRA on a linear layer. It also rescales adapters applied before it."""
    return hasattr(adapted.module, "lora_variant") and any(_is_dora(adapted, adapter) for adapter in adapters)


def plain(adapted: AdapterModule, now: Values, adapters: Names, before: Values, recorded: Names) -> LowRank:
    """Return the change of a weight by LoRA."""
    scale = (adapted.scaling(adapters[0], now) if adapters else 0.0) or 1.0
    pairs = {adapter: _pair(adapted, now, adapter, scale) for adapter in adapters}
    first = {adapter: _pair(adapted, before, was, scale) for adapter, was in _origins(adapters, recorded).items()}
    left, right = _joined(pairs, first, adapters)
    embedding = bool(adapted.module.lora_embedding_A)
    by_left = embedding or (bool(adapters) and all(_keeps_left(adapted, adapter) for adapter in adapters))
    transposed = embedding or bool(getattr(adapted.module, "fan_in_fan_out", False))
    return LowRank(left, right, transposed, "left" if by_left else "right", scale)


def rescaled(adapted: AdapterModule, now: Values, adapters: Names, before: Values, recorded: Names) -> Rescaled:
    """Return the change of a weight by LoRA adapters, at least one of which is DoRA."""
    require_base(adapted, "DoRA")
    after = adapted.active
    frozen = {adapter: adapter for adapter in after if adapter not in adapters}
    origins = {**frozen, **_origins(adapters, recorded)}
    was = {adapter: origins[adapter] for adapter in after if adapter in origins}

    def before_or_now(name: str) -> Tensor | None:
        found = before(name)
        return now(name) if found is None else found

    pairs = {adapter: _pair(adapted, now, adapter) for adapter in after}
    first = {adapter: _pair(adapted, before_or_now, origin) for adapter, origin in was.items()}

    def rescaling() -> Rescaling:
        weight = _base_weight(adapted)
        rows, lefts = _gains(adapted, weight, now, {adapter: adapter for adapter in after})
        first_rows, first_lefts = _gains(adapted, weight, before_or_now, was)
        left, _ = _joined(
            {adapter: (lefts[adapter], right) for adapter, (_, right) in pairs.items()},
            {adapter: (first_lefts[adapter], right) for adapter, (_, right) in first.items()},
            adapters,
        )
        return Rescaling(rows - first_rows, left, weight)

    transposed = bool(getattr(adapted.module, "fan_in_fan_out", False))
    return Rescaled(LowRank(*_joined(pairs, first, adapters)), rescaling, transposed)


def experts(adapted: AdapterModule, now: Values, adapters: Names, before: Values, recorded: Names) -> Merged:
    """Return the change of a weight of several experts, each with its own factors."""
    module = adapted.module
    swapped = getattr(module, "_did_swap_in_out_features", False)  # the shape is (experts, out, in)

    def stacked(value: Values, counted: Sequence[str], sign: int) -> Iterator[tuple[Tensor, Tensor]]:
        for adapter in counted:
            a, b = (known(value, name) for name in _halves(adapted, adapter))
            a, b = (wide(a), wide(b)) if recorded else (a.float(), b.float())  # fp64 for a small difference
            left = b.reshape(len(b), -1, module.num_experts).permute(2, 0, 1)
            left = left * (sign * adapted.scaling(adapter, value))
            yield left, a.reshape(module.num_experts, -1, a.shape[-1])

    def dense() -> Tensor:
        parts = [*stacked(now, adapters, 1), *stacked(before, recorded, -1)]
        left, right = torch.cat([left for left, _ in parts], 2), torch.cat([right for _, right in parts], 1)
        return left @ right if swapped else right.mT @ left.mT

    return Merged(tuple(module.get_param().shape), dense)


def bias(adapted: AdapterModule, now: Values, adapters: Names, before: Values, recorded: Names) -> Merged:
    """Return the change of the base layer's bias by the bias of LoRA's B (``lora_bias=True``)."""

    def total(value: Values, counted: Sequence[str]) -> Tensor:
        own = [(a, adapted.names[f"lora_B.{a}.bias"]) for a in counted if adapted.module.lora_bias.get(a)]
        parts = [wide(known(value, name)) * adapted.scaling(adapter, value) for adapter, name in own]
        return torch.stack(parts).sum(0) if parts else torch.zeros((), dtype=torch.float64, device="cpu")

    every = (*adapters, *recorded)
    (size,) = next(
        known(now, adapted.names[f"lora_B.{a}.bias"]).shape for a in every if adapted.module.lora_bias.get(a)
    )
    return Merged((size,), lambda: total(now, adapters) - total(before, recorded))


def known(value: Values, name: str) -> Tensor:
    """Return the value of a parameter.

    Raises:
        WeightWatchError: The parameter has no value.
    """
    found = value(name)
    if found is None:
        raise WeightWatchError(f"The start of {name} is not recorded, but that of its adapter is. Start the run anew.")
    return found


def require_base(adapted: AdapterModule, tuner: str) -> None:
    """Refuse an adapter of type ``tuner`` whose base weight can't be read.

    Raises:
        WeightWatchError: The weight is sharded, or the adapter is merged into it.
    """
    if adapted.sharded:
        raise WeightWatchError(
            f"{adapted.path} is a {tuner} adapter on a weight that is spread over processes. Its change depends on the "
            "whole weight, which is not gathered. Train with plain LoRA, or without sharding (DDP)."
        )
    if adapted.module.merged_adapters:
        raise WeightWatchError(
            f"The {tuner} adapter of {adapted.path} is merged into its weight now, so θ₀ can't be read from the model. "
            "Unmerge it (unmerge_adapter) to measure."
        )


def _is_dora(adapted: AdapterModule, adapter: str) -> bool:
    return type(adapted.module.lora_variant.get(adapter)).__name__ == "DoraLinearVariant"


def _keeps_left(adapted: AdapterModule, adapter: str) -> bool:
    """Whether an adapter trains only A, so that its left factor is fixed."""
    a, b = _halves(adapted, adapter)
    frozen = a in adapted.trained and b not in adapted.trained
    return frozen or "MiCA" in type(adapted.module.lora_variant.get(adapter)).__name__


def _origins(adapters: Sequence[str], recorded: Sequence[str]) -> dict[str, str]:
    """Return, for each adapter whose start is recorded, the adapter to read it from: itself, or TRL's copy."""
    return {adapters[0]: REF} if list(recorded) == [REF] else {adapter: adapter for adapter in recorded}


def _joined(now: Pairs, start: Pairs, moving: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Concatenate the factors of the adapters' change since the start.

    The change of one adapter is L R − L₀ R₀ = [L − L₀, L₀] [R; R − R₀], which is exact for small changes. For an
    adapter that is not in ``moving``, R = R₀. Of an adapter that is no longer active, −L₀ R₀ is left.
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
    for left, right in (pair for adapter, pair in start.items() if adapter not in now):
        like = lefts[0] if lefts else left
        lefts, rights = [*lefts, -left.to(like)], [*rights, right.to(like)]
    return (lefts[0], rights[0]) if len(lefts) == 1 else (torch.cat(lefts, 1), torch.cat(rights))


def _pair(adapted: AdapterModule, value: Values, adapter: str, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the factors of an adapter's product divided by ``scale``; with its own scaling, they are not copied."""
    a, b = (known(value, name).float() for name in _halves(adapted, adapter))
    scaling = adapted.scaling(adapter, value) / scale
    return (b, a) if scaling == 1 else (b * scaling, a)


def _halves(adapted: AdapterModule, adapter: str) -> tuple[str, str]:
    """Return the names of an adapter's A and B."""
    if adapted.module.lora_embedding_A:
        return adapted.name(f"lora_embedding_A.{adapter}"), adapted.name(f"lora_embedding_B.{adapter}")
    return adapted.name(f"lora_A.{adapter}.weight"), adapted.name(f"lora_B.{adapter}.weight")


def _gains(
    adapted: AdapterModule, weight: Tensor, value: Values, adapters: Mapping[str, str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the combined gain of the adapters, shape (out,), and each adapter's left factor times the gains on it.

    Args:
        adapted: The adapter module.
        weight: W₀, shape (out, in).
        value: The adapters' parameters.
        adapters: Name of each adapter in the result and in the module, in the order in which PEFT applies them.
    """
    rows = wide(torch.ones(len(weight), dtype=torch.float32, device=weight.device))
    lefts: dict[str, Tensor] = {}
    for key, adapter in adapters.items():
        lefts[key] = wide(_pair(adapted, value, adapter)[0]).to(rows.device)
        if _is_dora(adapted, adapter):
            gain = _gain(adapted, weight, value, adapter).to(rows.device)
            rows, lefts = gain * rows, {key: gain[:, None] * left for key, left in lefts.items()}
    return rows, lefts


def _base_weight(adapted: AdapterModule) -> Tensor:
    """Return W₀, shape (out, in), dequantised if needed."""
    from peft.utils.integrations import dequantize_module_weight

    weight: Tensor = dequantize_module_weight(adapted.module.get_base_layer()).detach()
    return weight.T if getattr(adapted.module, "fan_in_fan_out", False) else weight


def _gain(adapted: AdapterModule, weight: Tensor, value: Values, adapter: str) -> Tensor:
    """Return DoRA's gain m / ‖W₀ + B A‖, shape (out,), rounded as in PEFT's forward pass."""
    a, b = (known(value, name) for name in _halves(adapted, adapter))
    dora = adapted.module.lora_magnitude_vector[adapter]
    magnitude = known(value, adapted.names[f"lora_magnitude_vector.{adapter}.weight"])
    a, b = a.to(weight.device), b.to(weight.device)
    rounded = weight.to(a.dtype)
    norm = dora.get_weight_norm(rounded.T if dora.fan_in_fan_out else rounded, b @ a, adapted.scaling(adapter, value))
    return wide(magnitude.to(norm.device) / norm)
