"""Changes of a model's weights by its PEFT adapters.

* LoRA and trainable tokens: factors. The base weight may be quantised.
* DoRA on linear layers: factors and row gains.
* ``target_parameters``: the product of the factors of each expert.
* All others: what PEFT merges into a copy of the adapter module; see ``weightwatch.update.peft.merging``.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from weightwatch.update.change import Change, Merged, Rescaled
from weightwatch.update.peft.lora import (
    REF,
    Names,
    bias,
    experts,
    has_factors,
    is_rescaled,
    known,
    plain,
    require_base,
    rescaled,
)
from weightwatch.update.peft.merging import NotMergeableError, changed, difference, quantised
from weightwatch.update.peft.modules import OUT, SCALING, AdapterModule, Start, Values
from weightwatch.update.sharding.local import LocalTensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide
from weightwatch.vectors.weights.difference import moved
from weightwatch.vectors.weights.reader import Box

_ROWS = 1024  # rows of a product that are computed at a time


def changes(adapted: AdapterModule, now: Values, start: Start, every: bool) -> dict[str, Change]:
    """Return the changes of a base layer's weights by the adapters of its module.

    What counts is the active adapters now, less those at the start of the run. An adapter that was frozen at the start
    and still is counts on neither side, nor does one that is frozen in this module and has not moved.

    Args:
        adapted: The adapter module.
        now: The adapters' parameters now.
        start: The adapters at the start of the run. Those without values there started at zero.
        every: Whether frozen adapters count too.

    Returns:
        The changes by the weights' names; empty if there are none.

    Raises:
        WeightWatchError: The adapters are disabled, or their change can't be computed exactly.
    """
    trained = adapted.adapters(every)
    found = _changes(adapted, now, start, trained)
    fixed = not trained and not any(_moves(change) for change in found.values())
    return {} if fixed else found


def _changes(adapted: AdapterModule, now: Values, start: Start, trained: Names) -> dict[str, Change]:
    adapters = [a for a in adapted.active if a in trained or (start.frozen is not None and a not in start.frozen)]
    if adapted.module.disable_adapters and adapted.active:
        raise WeightWatchError(
            f"The adapters of {adapted.path} are disabled, so the model equals its base now. Enable them to measure."
        )
    before: Values = start.values.get
    recorded = [a for a in adapted.started(start) if a in adapters or a not in adapted.active]
    if adapters and not (recorded or start.taken) and REF in adapted.available and REF not in adapted.active:
        before, recorded = now, [REF]
    if not adapters and not recorded:
        return {}
    _require_known(adapted, recorded, start)

    if _has_tokens(adapted):
        return {adapted.weight: _tokens(adapted, now, adapters, before, recorded)}
    left = [adapter for adapter in recorded if adapter not in adapters and adapter != REF]
    dora = is_rescaled(adapted, [*adapted.active, *left])
    factors = [*(adapted.active if dora else adapters), *left]
    if (dora and left) or not all(has_factors(adapted, adapter) for adapter in factors):
        return _merged(adapted, adapters, recorded, start.values)
    if dora:
        return {adapted.weight: rescaled(adapted, now, adapters, before, recorded)}
    of_experts = getattr(adapted.module, "num_experts", 1) > 1
    found: dict[str, Change] = {
        adapted.weight: (experts if of_experts else plain)(adapted, now, adapters, before, recorded)
    }
    if any(adapted.module.lora_bias.get(adapter) for adapter in [*adapters, *left]):
        found[adapted.base_parameter("bias")] = bias(adapted, now, adapters, before, recorded)
    return found


def rebased(change: Change, base: LocalTensor, start: Callable[[Box], Tensor]) -> Merged:
    """Return the change of a weight by adapters together with a change of the frozen weight beneath them.

    Args:
        change: The change by the adapters.
        base: The frozen weight now; it is not sharded.
        start: Reads a box of the frozen weight as it was when the run began.
    """
    (piece,) = base.pieces

    def dense() -> Tensor:
        before = start(piece.box).to(piece.values.device)
        return wide(moved(piece.values, before, base.dtype)) + wide(_dense(change)).to(piece.values.device)

    return Merged(base.shape, dense)


def starts(found: Sequence[AdapterModule], now: Values) -> dict[str, Tensor]:
    """Return the values of ``Start``: copies of the adapters' parameters where they change the weights now.

    Taken before the first step, they record the start of adapters that do not start at zero: PiSSA, or an adapter that
    is trained further. Active adapters that are frozen are recorded too, since they may be switched off later.

    Args:
        found: The adapter modules of a model.
        now: The adapters' parameters now.

    Raises:
        WeightWatchError: A change can't be computed exactly.
    """
    copies = {}
    for adapted in found:
        kept = set(adapted.active).difference(adapted.adapters(every=False))
        if any(_moves(change) for change in changes(adapted, now, Start(taken=True), every=False).values()):
            kept.update(adapted.active)
        if kept:
            mine = [name for local, name in adapted.names.items() if adapted.owners.get(local) in {None, *kept}]
            copies.update({name: value.clone() for name in mine if (value := now(name)) is not None})
            for adapter in kept:
                scaling = torch.tensor(_scaling(adapted.module, adapter), dtype=torch.float64, device="cpu")
                copies[f"{adapted.path}{SCALING}{adapter}"] = scaling
    return copies


def is_additive(adapted: AdapterModule, start: Start) -> bool:
    """Whether the change by a module's adapters may be added to a change of its base weight."""
    if _has_tokens(adapted):
        return False
    return not adapted.started(start) or all(
        has_factors(adapted, a) and not is_rescaled(adapted, [a]) for a in adapted.available
    )


def start_factors(found: Sequence[AdapterModule], start: Start) -> dict[str, LowRank]:
    """Return the change that LoRA starts with, by weight. Weights whose change starts at zero are left out."""
    added = {}
    for adapted in found:
        recorded = [adapter for adapter in adapted.started(start) if adapter not in (start.frozen or ())]
        if recorded and all(has_factors(adapted, adapter) for adapter in recorded):
            before: Values = start.values.get
            added[adapted.weight] = plain(adapted, before, recorded, before, [])
    return added


def _scaling(module: Any, adapter: str) -> float:
    """Return the scaling of an adapter; one if its kind has none."""
    scalings = getattr(module, "scaling", None)
    return float(scalings.get(adapter, 1.0)) if isinstance(scalings, dict) else 1.0


def _require_known(adapted: AdapterModule, recorded: Names, start: Start) -> None:
    """Refuse an adapter that the module has no longer, if its effect does not follow from two factors."""
    for adapter in (adapter for adapter in recorded if adapter not in adapted.available):
        factors = {f"{adapted.path}.lora_{half}.{adapter}.weight" for half in "AB"}
        factors |= {f"{adapted.path}.lora_embedding_{half}.{adapter}" for half in "AB"}
        own = {name for name in start.values if name.startswith(f"{adapted.path}.") and f".{adapter}" in name}
        if own - factors - {f"{adapted.path}{SCALING}{adapter}"}:
            raise WeightWatchError(
                f"The adapter {adapter!r} of {adapted.path}, with which the run began, was deleted, and its effect "
                "can't be computed without its module. Keep it (set_adapter switches it off), or start a new run."
            )


def _has_tokens(adapted: AdapterModule) -> bool:
    """Whether a module trains single rows of an embedding (``trainable_token_indices``)."""
    return _selects_rows(adapted.module.__class__)


@cache
def _selects_rows(kind: type) -> bool:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return issubclass(kind, TrainableTokensLayer)


def _tokens(adapted: AdapterModule, now: Values, adapters: Names, before: Values, recorded: Names) -> LowRank:
    """Return the change of the trained rows as factors: L selects the rows, R is their change."""
    module = adapted.module
    either = list(dict.fromkeys([*adapters, *recorded]))
    places = {row: place for place, row in enumerate(sorted({r for a in either for r in module.token_indices[a]}))}
    base, originals = module.get_base_layer(), module.trainable_tokens_original
    size = base.num_embeddings if isinstance(base, nn.Embedding) else base.out_features
    width, device = originals[either[0]].shape[1], originals[either[0]].device
    found = []
    for value, counted in ((now, adapters), (before, recorded)):
        table = torch.zeros(len(places), width, dtype=torch.float32, device=device)
        for adapter, rows in [(a, originals[a]) for a in either] + [
            (a, _token_rows(adapted, value, a)) for a in counted
        ]:
            mine = [(places[row], i) for i, row in enumerate(module.token_indices[adapter]) if row in places]
            into, out = torch.tensor(mine, dtype=torch.long, device=table.device).reshape(-1, 2).T
            table[into] = rows.to(table)[out]
        found.append(table)
    left = torch.zeros(size, len(places), dtype=torch.float32, device=device)
    left[list(places), list(places.values())] = 1.0
    return LowRank(left, found[0] - found[1], limited="left")


def _token_rows(adapted: AdapterModule, value: Values, adapter: str) -> Tensor:
    return known(value, adapted.names[f"trainable_tokens_delta.{adapter}"])


def _merged(
    adapted: AdapterModule, adapters: Sequence[str], recorded: Sequence[str], start: Mapping[str, Tensor]
) -> dict[str, Change]:
    """Return the changes that PEFT's merge makes in a copy of the adapter module."""
    require_base(adapted, _tuner(adapted))
    module = adapted.module
    if quantised(module):
        raise WeightWatchError(
            f"{adapted.path} is a {_tuner(adapted)} adapter on a quantised weight, whose change can't be computed "
            "exactly. Train with LoRA or DoRA, or load the base unquantised."
        )
    after = adapted.active
    first = [a for a in after if a not in adapters or a in recorded] + [a for a in recorded if a not in after]
    for adapter in recorded:
        scaling = start.get(f"{adapted.path}{SCALING}{adapter}")
        if scaling is not None and float(scaling) != _scaling(module, adapter):
            raise WeightWatchError(
                f"The scaling of the adapter {adapter!r} of {adapted.path} has changed since the run began, which can "
                "be measured only of plain LoRA. Set it back."
            )
    values = {local: start[name] for local, name in adapted.names.items() if name in start}
    moved = [local for local, name in adapted.names.items() if not adapted.trained or name in adapted.trained]
    try:
        names = changed(module, after or first, moved)
    except NotMergeableError as reason:
        raise WeightWatchError(
            f"{adapted.path} is a {_tuner(adapted)} adapter, which is not supported, since its effect can't be "
            f"expressed as a change of weights: {reason}. {OUT}"
        ) from reason
    base = dict(module.get_base_layer().named_parameters())
    return {
        adapted.base_parameter(name): Merged(
            tuple(base[name].shape), partial(difference, module, name, after, first, values)
        )
        for name in names
    }


def _dense(change: Change) -> Tensor:
    """Multiply out a change."""
    match change:
        case LowRank():
            return change.dense()
        case Rescaled():
            parts = change.rescaling()
            whole = wide(parts.rows)[:, None] * wide(parts.weight) + wide(parts.left) @ wide(change.factors.right)
            return whole.T if change.transposed else whole
        case Merged():
            return change.dense()
        case _:
            raise TypeError(change)


def _moves(change: Change) -> bool:
    """Whether a change is not zero."""
    match change:
        case LowRank(left=left, right=right):
            return not _is_zero(left, right)
        case Rescaled():
            parts = change.rescaling()
            return bool(parts.rows.any()) or not _is_zero(parts.left, change.factors.right)
        case Merged():
            return bool(change.dense().any())
        case _:
            raise TypeError(change)


def _is_zero(left: Tensor, right: Tensor) -> bool:
    """Whether a product of factors is exactly zero. One that is zero only up to rounding has to be recorded."""
    if not left.any() or not right.any():
        return True
    return not any(bool((wide(rows) @ wide(right)).any()) for rows in left.split(_ROWS))


def _tuner(adapted: AdapterModule) -> str:
    """Return PEFT's name for the type of an adapter."""
    module = adapted.module
    name = type(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
    parts = [] if type(module).__name__ in ("Linear", "Embedding") else [type(module).__name__]
    parts += sorted({type(v).__name__ for v in getattr(module, "lora_variant", {}).values()})
    return f"{name} ({', '.join(parts)})" if parts else name
