"""The card of a direction that was computed from others: what it was computed from, and what holds of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from weightwatch.vectors.card import Card
from weightwatch.vectors.direction import Direction

Value = TypeVar("Value")


def descended(operation: str, directions: Sequence[Direction], coefficients: Sequence[float], name: str) -> Card:
    """Return the card of a direction that was computed from others.

    What all operands state alike is kept. A seed that differs is noted for each operand by its place, ``adapter.1``. A
    result is not validated, whatever its operands are.

    Args:
        operation: What was done: ``add``, ``mean``, ``scale``, ``orthogonalise``.
        directions: The operands.
        coefficients: Theirs, as far as one number says it; missing ones were other in each tensor.
        name: Of the result.
    """
    cards = [direction.card for direction in directions]
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
        behaviour=_behaviour(operation, cards, coefficients),
        base=next((card.base for card in cards if card.base), None),
        fingerprint=fingerprint,
        ranks=first.ranks if all(card.ranks == first.ranks for card in cards) else [],
        recipe={"operation": operation, "operands": operands},
        seeds=_seeds([card.seeds for card in cards]),
        hyperparameters=_common([card.hyperparameters for card in cards]),
        data_hash=first.data_hash if all(card.data_hash == first.data_hash for card in cards) else None,
    )


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
