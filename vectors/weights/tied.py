"""Which stored tensors a direction changes, where a head is tied to the embedding: one weight, stored once or twice."""

import json
from collections.abc import Iterator

import torch

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.steering.in_memory import AT_ONCE, equal_parts
from weightwatch.vectors.weights.checkpoint import FLOATS, Checkpoint
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.reader import boxes


def matched(stored: Checkpoint, direction: Direction) -> Iterator[tuple[str, str]]:
    """Yield the tensors of a checkpoint that a direction changes, each with the direction's name for it.

    A tied head that the checkpoint does not store goes by the embedding; one that it stores as well changes with it.

    Raises:
        WeightWatchError: The checkpoint lacks a tensor of the direction, or tied weights would have to differ.
    """
    found: dict[str, str] = {}
    for name in direction.deltas:
        target = name if name in stored else _embedding(stored, direction, name)
        for copy in [target, *_copies(stored, target)]:
            taken = found.setdefault(copy, name)
            if taken != name and not equal_parts(direction, taken, name):
                raise WeightWatchError(
                    f"{name} and {taken} are one tied weight of {stored.path}, but direction {direction.name!r} "
                    "changes them differently. Use a direction of a tied model."
                )
    yield from found.items()


def _embedding(stored: Checkpoint, direction: Direction, name: str) -> str:
    """Return what a head that is not stored is tied to: the one other matrix of its shape outside the layers."""
    shape = direction.shape(name)
    alike = [other for other in _matrices(stored) if stored.shape(other) == shape]
    if indexed(name) or len(alike) != 1 or not _may_tie(stored):
        raise WeightWatchError(
            f"{stored.path} lacks {name}, which direction {direction.name!r} changes. Use a direction that was built "
            "from this model; where transformers stores a model's parameters under other names, `weightwatch steer` "
            "and model_names.under_names find them."
        )
    return alike[0]


def _copies(stored: Checkpoint, target: str) -> list[str]:
    """Return the other tensors outside the layers that hold the same values: a tied head that was saved as well."""
    outside = _matrices(stored)
    if target not in outside or not _may_tie(stored):
        return []
    shape, kind = stored.shape(target), stored.dtype(target)
    alike = [o for o in outside if o != target and stored.shape(o) == shape and stored.dtype(o) == kind]
    return [
        other
        for other in alike
        if all(torch.equal(stored.read(target, box), stored.read(other, box)) for box in boxes(shape, AT_ONCE))
    ]


def _matrices(stored: Checkpoint) -> list[str]:
    return [n for n in stored if not indexed(n) and len(stored.shape(n)) == 2 and stored.dtype(n) in FLOATS]


def _may_tie(stored: Checkpoint) -> bool:
    """Whether nothing says that the model's head is one of its own."""
    try:
        config = json.loads((stored.path / "config.json").read_text())
    except (OSError, ValueError):
        return True
    return config.get("tie_word_embeddings") is not False
