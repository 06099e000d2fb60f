"""Tied heads: where a direction counts once what it states for a head and for its embedding."""

from collections.abc import Mapping

from weightwatch.update.change import Change, Difference, Streamed
from weightwatch.vectors.direction import Direction


def counted_once(direction: Direction, tied: Mapping[str, str], changes: Mapping[str, Change]) -> Direction:
    """Return a direction without the tied heads that repeat their embedding.

    A head is a weight of its own if an adapter changes it, since that leaves the embedding as it is, or if only the
    direction changes it so. It repeats the embedding if that is trained itself, or if the direction changes both alike.

    Args:
        direction: The direction.
        tied: Names of tied heads, each with the name of the embedding.
        changes: What the training changes, by name.
    """
    repeated = set()
    for head, embedding in tied.items():
        if head in direction.deltas and head not in changes:
            trained = isinstance(changes.get(embedding), Difference | Streamed)
            if trained or (embedding in direction.deltas and direction.changes_alike(head, embedding)):
                repeated.add(head)
    return direction.without(repeated)
