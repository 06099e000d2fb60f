"""Changes of a model's weights by its PEFT adapters.

* LoRA and trainable tokens: factors. The base weight may be quantised.
* DoRA on linear layers: factors and row gains.
* ``target_parameters``: the product of the factors of each expert.
* All others: what PEFT merges into a copy of the adapter module; see ``weightwatch.update.peft.merging``.
"""

from collections.abc import Mapping, Sequence
from functools import partial

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
from weightwatch.update.peft.modules import OUT, AdapterModule, Values
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide

_ROWS = 1024  # rows of a product that are computed at a time


def changes(adapted: AdapterModule, now: Values, start: Mapping[str, Tensor], every: bool) -> dict[str, Change]:
    """Return the changes of a base layer's weights by the active adapters of its module.

    Args:
        adapted: The adapter module.
        now: The adapters' parameters now.
        start: The adapters' parameters at the start of the run, by name in the model. For an adapter module that has
            none in it, the start is the frozen copy that TRL keeps as the adapter ``ref``; without a copy, zero.
        every: Whether frozen adapters count too.

    Returns:
        The changes by the weights' names; empty if no adapter that counts is active.

    Raises:
        WeightWatchError: The adapters are disabled, or their change can't be computed exactly.
    """
    adapters = adapted.adapters(every)
    if adapted.module.disable_adapters and adapted.available.intersection(adapted.module.active_adapters):
        raise WeightWatchError(
            f"The adapters of {adapted.path} are disabled, so the model equals its base now. Enable them to measure."
        )
    if not adapters:
        return {}
    before: Values = start.get
    recorded = adapted.with_values(adapters, before)
    if not recorded and REF in adapted.available and REF not in adapted.module.active_adapters:
        before, recorded = now, [REF]

    if _has_tokens(adapted):
        return {adapted.weight: _tokens(adapted, now, adapters, before, recorded)}
    dora = is_rescaled(adapted)
    if not all(has_factors(adapted, adapter) for adapter in (adapted.active if dora else adapters)):
        return _merged(adapted, adapters, recorded, start)
    if dora:
        return {adapted.weight: rescaled(adapted, now, adapters, before, recorded)}
    of_experts = getattr(adapted.module, "num_experts", 1) > 1
    found: dict[str, Change] = {
        adapted.weight: (experts if of_experts else plain)(adapted, now, adapters, before, recorded)
    }
    if any(adapted.module.lora_bias.get(adapter) for adapter in adapters):
        found[adapted.base_parameter("bias")] = bias(adapted, now, adapters, before, recorded)
    return found


def starts(found: Sequence[AdapterModule], now: Values) -> dict[str, Tensor]:
    """Return copies of the adapters' parameters, by name, of the modules whose change is not zero now.

    Taken before the first step, they record the start of adapters that do not start at zero: PiSSA, or an adapter that
    is trained further.

    Args:
        found: The adapter modules of a model.
        now: The adapters' parameters now.

    Raises:
        WeightWatchError: A change can't be computed exactly.
    """
    copies = {}
    for adapted in found:
        if any(_moves(change) for change in changes(adapted, now, {}, every=False).values()):
            copies.update({name: value.clone() for name in adapted.own if (value := now(name)) is not None})
    return copies


def start_factors(found: Sequence[AdapterModule], start: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return the change that LoRA starts with, by weight. Weights whose change starts at zero are left out."""
    added = {}
    for adapted in found:
        recorded = adapted.with_values(sorted(adapted.available), start.get)
        if recorded and all(has_factors(adapted, adapter) for adapter in recorded):
            added[adapted.weight] = plain(adapted, start.get, recorded, start.get, [])
    return added


def _has_tokens(adapted: AdapterModule) -> bool:
    """Whether a module trains single rows of an embedding (``trainable_token_indices``)."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return isinstance(adapted.module, TrainableTokensLayer)


def _tokens(adapted: AdapterModule, now: Values, adapters: Names, before: Values, recorded: Names) -> LowRank:
    """Return the change of the trained rows as factors: L selects the rows, R is their change."""
    module = adapted.module
    places = {row: place for place, row in enumerate(sorted({r for a in adapters for r in module.token_indices[a]}))}
    base, originals = module.get_base_layer(), module.trainable_tokens_original
    size = base.num_embeddings if isinstance(base, nn.Embedding) else base.out_features
    width = originals[adapters[0]].shape[1]
    found = []
    for value, counted in ((now, adapters), (before, recorded)):
        table = torch.zeros(len(places), width, dtype=torch.float32, device=originals[adapters[0]].device)
        for adapter, rows in [(a, originals[a]) for a in adapters] + [
            (a, _token_rows(adapted, value, a)) for a in counted
        ]:
            mine = [(places[row], i) for i, row in enumerate(module.token_indices[adapter]) if row in places]
            into, out = torch.tensor(mine, dtype=torch.long, device=table.device).reshape(-1, 2).T
            table[into] = rows.to(table)[out]
        found.append(table)
    left = torch.zeros(size, len(places), dtype=torch.float32, device=found[0].device)
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
    values = {local: start[name] for local, name in adapted.names.items() if name in start}
    moved = [local for local, name in adapted.names.items() if not adapted.trained or name in adapted.trained]
    try:
        names = changed(module, after, moved)
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
