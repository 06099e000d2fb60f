"""Tensors and cards of directions: the contrast θ⁺ − θ⁻ of two fine-tunes, the task vector τ = θ_t − θ₀, and sums."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from weightwatch.vectors.card import Card
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank, join, summed
from weightwatch.vectors.provenance import descended, described, formula, require_one_base, weights_of
from weightwatch.vectors.weights import full_copies
from weightwatch.vectors.weights.adapter_config import AdapterConfig, is_adapter
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.difference import Difference, moved
from weightwatch.vectors.weights.names import by_canonical_name
from weightwatch.vectors.weights.peft_adapter import PeftAdapter
from weightwatch.vectors.weights.sources import local_folder

Side: TypeAlias = str | Path | Mapping[str, Tensor]
"""One fine-tune: a PEFT adapter folder, a safetensors checkpoint (folder or file), or a state dict."""

Built: TypeAlias = tuple[Mapping[str, Delta], dict[str, Any]]
"""The tensors of a direction by parameter name, and fields of its card."""


def contrast(positive: Side, negative: Side, base: Side | None, name: str) -> Built:
    """Subtract one fine-tune from another; see ``Direction.from_contrast``.

    Args:
        positive: The fine-tune on the behaviour.
        negative: The fine-tune on its opposite; or the base itself, for a task vector.
        base: Their base model. Default: what the adapters' configs name.
        name: The direction's name, for messages.

    Raises:
        WeightWatchError: The sides differ in kind, base, tensors or shapes.
    """
    adapters = [_is_adapter(side) for side in (positive, negative)]
    if all(adapters):
        deltas, named, ranks = _contrast_adapters(Path(str(positive)), Path(str(negative)), base)
    elif adapters[0] and _is_base_of(Path(str(positive)), negative):
        deltas, named, ranks = _adapter_alone(Path(str(positive)), base)
    elif any(adapters):
        raise WeightWatchError(
            f"One side is a LoRA adapter and the other is not: {_title(positive)}, {_title(negative)}. "
            "Pass two adapters, or merge the adapter and pass two checkpoints; or, for what the adapter does to its "
            "base, Direction.from_fine_tune."
        )
    else:
        deltas, named, ranks = _contrast_weights(positive, negative), None, []
    return deltas, {"ranks": ranks, **described(deltas, base, named, name)}


def task_vector(fine_tuned: Side, base: Side | None, name: str) -> Built:
    """Subtract the base from a fine-tune; see ``Direction.from_fine_tune``.

    Args:
        fine_tuned: The fine-tune.
        base: The model that it started from. Default: what an adapter's config names.
        name: The direction's name, for messages.

    Raises:
        WeightWatchError: A checkpoint is given without its base; or see ``contrast``.
    """
    if _is_adapter(fine_tuned):
        deltas, named, ranks = _adapter_alone(Path(str(fine_tuned)), base)
        return deltas, {"ranks": ranks, **described(deltas, base, named, name)}
    if base is None:
        raise WeightWatchError(f"{name} is a full checkpoint: pass the base that it was fine-tuned from.")
    now, start = (_checkpoint(side) for side in (fine_tuned, base))
    if now is None or start is None:
        return contrast(fine_tuned, base, base, name)
    difference = Difference(now, start)
    return difference, described(difference, start, None, name)


def weighted_sum(
    operation: str,
    operands: Sequence[Mapping[str, Delta]],
    cards: Sequence[Card],
    coefficients: Sequence[float],
    name: str | None = None,
) -> tuple[Mapping[str, Delta], Card]:
    """Return the tensors and the card of Σ kᵢ wᵢ.

    Args:
        operation: The operation on the card: ``add`` or ``mean``.
        operands: The tensors of the directions wᵢ.
        cards: Their cards.
        coefficients: Their coefficients kᵢ.
        name: The result's name. Default: the formula.

    Raises:
        WeightWatchError: The operands have different bases or shapes, or the sum is zero.
    """
    name = name or formula(cards, coefficients)
    require_one_base(cards)
    deltas = summed(operands, lambda _: coefficients)
    if not deltas:
        raise WeightWatchError(f"{name} is zero: the operands cancel out. Pass other coefficients.")
    return deltas, descended(operation, cards, coefficients, name)


def _is_adapter(side: Side) -> bool:
    return not isinstance(side, Mapping) and is_adapter(Path(side))


def _checkpoint(side: Side) -> Checkpoint | None:
    """Return a side as a checkpoint, a Hub id from the cache; None for a state dict."""
    if isinstance(side, Mapping):
        return side if isinstance(side, Checkpoint) else None
    return Checkpoint(local_folder(str(side)) or side)


def _model(base: Side | None) -> Checkpoint | None:
    """Return a base on this machine; None for a state dict, or if there is none."""
    if base is None or isinstance(base, Mapping):
        return base if isinstance(base, Checkpoint) else None
    folder = local_folder(str(base))
    return Checkpoint(folder) if folder is not None else None


def _adapter_alone(folder: Path, base: Side | None) -> tuple[Mapping[str, Delta], str | None, list[int]]:
    """Return the change that an adapter makes, the base that it names, and its rank."""
    adapter, changes = _read(folder, base)
    return changes, adapter.base, [adapter.rank]


def _read(folder: Path, base: Side | None) -> tuple[PeftAdapter, dict[str, Delta]]:
    """Return an adapter and its changes. Default of the base: the one that its settings name."""
    named = PeftAdapter.read(folder).base
    adapter = PeftAdapter.read(folder, _model(base or named))
    return adapter, full_copies.changes(adapter, weights_of(base or named))


def _contrast_adapters(
    positive: Path, negative: Path, base: Side | None
) -> tuple[Mapping[str, Delta], str | None, list[int]]:
    bases = [AdapterConfig.read(folder).base_model_name_or_path for folder in (positive, negative)]
    if all(bases) and bases[0] != bases[1]:
        raise WeightWatchError(
            f"The sides have different bases: {positive} has {bases[0]}, {negative} has {bases[1]}. "
            "Train both from the same base model."
        )
    (first, plus), (last, minus) = (_read(folder, base) for folder in (positive, negative))
    deltas: dict[str, Delta] = {}
    full: list[dict[str, Delta]] = [{}, {}]
    for name in [*plus, *(name for name in minus if name not in plus)]:
        sides = [(sign, side[name]) for sign, side in ((1.0, plus), (-1.0, minus)) if name in side]
        thin = [(sign, change) for sign, change in sides if isinstance(change, LowRank)]
        if len(thin) == len(sides):
            deltas[name] = join(name, thin)
            continue
        for one, side in zip(full, (plus, minus), strict=True):
            one.update({name: side[name]} if name in side else {})
    deltas.update(summed(full, lambda _: (1.0, -1.0)))
    return deltas, bases[0] or bases[1], [first.rank, last.rank]


def _contrast_weights(positive: Side, negative: Side) -> dict[str, Delta]:
    plus, minus = (_weights(side) for side in (positive, negative))
    unpaired = sorted(set(plus) ^ set(minus))
    if unpaired:
        raise WeightWatchError(
            f"Only one of {_title(positive)} and {_title(negative)} has {unpaired[0]} "
            f"({len(unpaired)} such tensors). Pass two fine-tunes of one base."
        )
    deltas: dict[str, Delta] = {}
    for name in plus:
        a, b = plus[name], minus[name]
        if a.shape != b.shape:
            raise WeightWatchError(
                f"The sides differ in the shape of {name}: {tuple(a.shape)} and {tuple(b.shape)}. "
                "Pass two fine-tunes of one base."
            )
        difference = moved(a, b) if a.is_floating_point() else None
        if difference is not None and bool(difference.any()):
            deltas[name] = difference
    if not deltas:
        raise WeightWatchError(
            f"{_title(positive)} and {_title(negative)} have the same weights: there is no contrast. Pass two "
            "different fine-tunes of one base."
        )
    return deltas


def _weights(side: Side) -> Mapping[str, Tensor]:
    if not isinstance(side, Mapping):
        return Checkpoint(side)
    if any(".lora_" in name for name in side):
        raise WeightWatchError(
            f"{_title(side)} contains LoRA factors. Save the adapter with save_pretrained and pass its folder."
        )
    return by_canonical_name(side, _title(side))


def _is_base_of(adapter: Path, side: Side) -> bool:
    """Whether a side is the base that an adapter names: the same id, or the same folder."""
    named = AdapterConfig.read(adapter).base_model_name_or_path
    if isinstance(side, Mapping) or not named:
        return False
    folders = local_folder(str(named)), local_folder(str(side))
    return str(side) == named or (folders[0] is not None and folders[0] == folders[1])


def _title(side: Any) -> str:
    return f"a state dict of {len(side)} tensors" if isinstance(side, Mapping) else str(side)
