"""Where a direction comes from: its base model, and the directions that it is computed from."""

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from weightwatch.vectors.card import Card
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint, Theta0
from weightwatch.vectors.low_rank import Delta
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.names import by_canonical_name
from weightwatch.vectors.weights.sources import local_folder
from weightwatch.vectors.weights.tied import unsaved_heads

Value = TypeVar("Value")

_logger = logging.getLogger("weightwatch")


def described(
    changes: Mapping[str, Delta], base: str | Path | Mapping[str, Tensor] | None, named: str | None, name: str
) -> dict[str, Any]:
    """Return the fields ``base`` and ``fingerprint`` of a direction's card.

    Args:
        changes: The direction, or tensors of the same names and shapes.
        base: Its base model: a folder, a Hub id, or a state dict. There is no fingerprint if the weights are not on
            this machine.
        named: The base that the fine-tunes name. It is the default of ``base``, and the title of a state dict.
        name: The direction's name, for messages.

    Raises:
        WeightWatchError: The base lacks a tensor of the direction, or has it in another shape.
    """
    base = base or named
    given = base.path if isinstance(base, Checkpoint) else base
    title = named if isinstance(given, Mapping) else str(given) if given else None
    weights = weights_of(base)
    if weights is None:
        _logger.warning(
            "weightwatch: the base of direction %r (%s) is not on this machine, so its card has no fingerprint "
            "and a wrong base goes unnoticed. Pass base= as a folder or a state dict.",
            name,
            title or "not named",
        )
        return {"base": title}
    heads = unsaved_heads(weights, {n: _shape(changes, n) for n in changes}) if isinstance(weights, Checkpoint) else {}
    names = {name: heads.get(name, name) for name in changes}  # of a tied head, the base has the embedding
    missing = sorted(name for name, own in names.items() if own not in weights)
    if missing:
        raise WeightWatchError(
            f"The base {title} has no {missing[0]}, which the fine-tunes changed. Pass the base that they were trained "
            "from."
        )
    for key, own in names.items():
        found, wanted = _shape(weights, own), _shape(changes, key)
        if found != wanted:
            raise WeightWatchError(
                f"The base {title} has shape {found} for {key} where the fine-tunes have {wanted}. "
                "Pass the base that they were trained from."
            )
    return {"base": title, "fingerprint": Fingerprint.of(set(names.values()), weights.__getitem__)}


def weights_of(base: str | Path | Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Return the weights of a base by parameter name; None if it is not on this machine."""
    if isinstance(base, Checkpoint):
        return base
    if isinstance(base, Mapping):
        return by_canonical_name(base, "The base")
    folder = local_folder(str(base)) if base else None
    return Checkpoint(folder) if folder is not None else None


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, Checkpoint) else tuple(tensors[name].shape)


def descended(operation: str, cards: Sequence[Card], coefficients: Sequence[float], name: str) -> Card:
    """Return the card of a direction that is computed from others.

    Fields on which all operands agree are kept. A seed that differs is listed for each operand under its position,
    ``adapter.1``. A result counts as not evaluated.

    Args:
        operation: The operation: ``add``, ``mean``, ``scale``, ``orthogonalise``.
        cards: The cards of the operands.
        coefficients: Their coefficients. Fewer than cards if an operand has another one in each tensor.
        name: The result's name.
    """
    first = cards[0]
    operands = []
    for i, card in enumerate(cards):
        noted: dict[str, Any] = {"name": card.name}
        if i < len(coefficients):
            noted["coefficient"] = coefficients[i]
        operands.append({**noted, "recipe": card.recipe} if card.recipe else noted)
    fingerprint = None
    for card in cards:
        if card.fingerprint is not None:
            fingerprint = card.fingerprint if fingerprint is None else fingerprint.joined(card.fingerprint)
    return Card(
        name=name,
        kind=first.kind if operation == "orthogonalise" or "behaviour" not in [c.kind for c in cards] else "behaviour",
        shuffled=all(card.shuffled for card in cards),
        behaviour=_behaviour(operation, cards, coefficients),
        base=next((card.base for card in cards if card.base), None),
        fingerprint=fingerprint,
        ranks=first.ranks if all(card.ranks == first.ranks for card in cards) else [],
        recipe={"operation": operation, "operands": operands},
        seeds=_seeds([card.seeds for card in cards]),
        hyperparameters=_common([card.hyperparameters for card in cards]),
        data_hash=first.data_hash if all(card.data_hash == first.data_hash for card in cards) else None,
    )


def require_base(card: Card, theta0: Theta0, model: str) -> None:
    """Compare a direction's fingerprint with a model; see ``Direction.require``."""
    if card.fingerprint is None:
        _logger.warning(
            "weightwatch: direction %r has no fingerprint, so it can't be verified that %s is its base (%s).",
            card.name,
            model,
            card.base or "not named",
        )
        return
    difference = card.fingerprint.mismatch(theta0)
    if difference is not None:
        if card.base == model:
            raise WeightWatchError(
                f"Direction {card.name!r} was built from {model} when that had other weights than now: {difference}. "
                "Start from the weights that it was built from, or build it again."
            )
        raise WeightWatchError(
            f"Direction {card.name!r} was built from {card.base or 'another model'}, not from {model}: {difference}. "
            "Use a direction built from this model, or start from the direction's base."
        )
    if card.fingerprint.unreadable(theta0):
        _logger.warning(
            "weightwatch: the weights of %s are quantised, so it can't be verified that it is the base of direction "
            "%r (%s). Pass reference= to compare them.",
            model,
            card.name,
            card.base or "not named",
        )


def require_one_base(cards: Sequence[Card]) -> None:
    """Make sure that the fingerprints of directions are of one base model.

    Raises:
        WeightWatchError: Two fingerprints differ.
    """
    for a, b in combinations(cards, 2):
        if a.fingerprint is None or b.fingerprint is None:
            continue
        difference = a.fingerprint.differs(b.fingerprint)
        if difference is not None:
            raise WeightWatchError(
                f"Directions {a.name!r} (of {a.base or 'an unnamed base'}) and {b.name!r} (of "
                f"{b.base or 'an unnamed base'}) have different bases: {difference}. Use directions built from one "
                "base model."
            )


def formula(cards: Sequence[Card], coefficients: Sequence[float]) -> str:
    """Return the name of a weighted sum: ``evil+0.5*sycophancy``."""
    parts = []
    for k, card in zip(coefficients, cards, strict=True):
        sign = "-" if k < 0 else "+"
        parts.append(f"{sign}{'' if abs(k) == 1 else f'{abs(k):g}*'}{card.name}")
    return "".join(parts).removeprefix("+")


def _behaviour(operation: str, cards: Sequence[Card], coefficients: Sequence[float]) -> str:
    first = cards[0].behaviour or cards[0].name
    if operation == "orthogonalise":
        return f"{first}; without the components along {', '.join(card.name for card in cards[1:])}"
    told = list(dict.fromkeys(card.behaviour for card in cards))
    if operation == "mean" and len(told) == 1:
        return told[0]
    terms = [f"{k:g} × ({card.behaviour or card.name})" for k, card in zip(coefficients, cards, strict=True)]
    return " + ".join(terms)


def _seeds(several: Sequence[Mapping[str, int]]) -> dict[str, int]:
    common = _common(several)
    rest = {f"{key}.{i}": seed for i, seeds in enumerate(several, 1) for key, seed in seeds.items()}
    return {**common, **{key: seed for key, seed in rest.items() if key.rpartition(".")[0] not in common}}


def _common(several: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """Return what all mappings state alike."""
    first, *others = several
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
