"""How PEFT's adapters inside a model change its weights.

* LoRA and trained tokens: factors, whatever the weight beneath is stored as.
* DoRA on linear layers: factors, and by how much the rows of the weight are stretched.
* ``target_parameters``: the product of the factors, expert by expert.
* All others: what PEFT merges into a copy of the layer; see ``weightwatch.update.peft.merging``.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from weightwatch.update.change import Change, Merged, Rescaled
from weightwatch.update.peft.lora import (
    REF,
    bias,
    experts,
    has_factors,
    is_stretched,
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

_ROWS = 1024  # of a product that is multiplied out at a time


def changes(layer: AdapterModule, now: Values, start: Mapping[str, Tensor], every: bool) -> dict[str, Change]:
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
    if not begun and REF in layer.available and REF not in layer.module.active_adapters:
        before, begun = now, [REF]

    if _has_tokens(layer):
        return {layer.weight: _tokens(layer, now, adapters, before, begun)}
    stretched = is_stretched(layer)
    if not all(has_factors(layer, adapter) for adapter in (layer.active if stretched else adapters)):
        return _merged(layer, adapters, begun, start)
    if stretched:
        return {layer.weight: rescaled(layer, now, adapters, before, begun)}
    of_experts = getattr(layer.module, "num_experts", 1) > 1
    found: dict[str, Change] = {layer.weight: (experts if of_experts else plain)(layer, now, adapters, before, begun)}
    if any(layer.module.lora_bias.get(adapter) for adapter in adapters):
        found[layer.beneath("bias")] = bias(layer, now, adapters, before, begun)
    return found


def starts(found: Sequence[AdapterModule], now: Values) -> dict[str, Tensor]:
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


def start_factors(found: Sequence[AdapterModule], start: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """Return what LoRA added to each weight at the start, where that was not zero, by the weights' names."""
    added = {}
    for layer in found:
        begun = layer.with_values(sorted(layer.available), start.get)
        if begun and all(has_factors(layer, adapter) for adapter in begun):
            added[layer.weight] = plain(layer, start.get, begun, start.get, [])
    return added


def _has_tokens(layer: AdapterModule) -> bool:
    """Whether a layer trains single rows of an embedding."""
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return isinstance(layer.module, TrainableTokensLayer)


def _tokens(
    layer: AdapterModule, now: Values, adapters: Sequence[str], before: Values, begun: Sequence[str]
) -> LowRank:
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


def _tokens_of(layer: AdapterModule, value: Values, adapter: str) -> Tensor:
    return known(value, layer.names[f"trainable_tokens_delta.{adapter}"])


def _merged(
    layer: AdapterModule, adapters: Sequence[str], begun: Sequence[str], start: Mapping[str, Tensor]
) -> dict[str, Change]:
    """Return the changes that merging a copy of the layer tells."""
    require_base(layer, _tuner(layer))
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
            f"change of weights: {reason}. {OUT}"
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
    if not left.any() or not right.any():
        return True
    return not any(bool((wide(rows) @ wide(right)).any()) for rows in left.split(_ROWS))


def _tuner(layer: AdapterModule) -> str:
    """Return what PEFT calls the adapter of a layer."""
    module = layer.module
    name = type(module).__module__.removeprefix("peft.tuners.").partition(".")[0]
    parts = [] if type(module).__name__ in ("Linear", "Embedding") else [type(module).__name__]
    parts += sorted({type(v).__name__ for v in getattr(module, "lora_variant", {}).values()})
    return f"{name} ({', '.join(parts)})" if parts else name
