"""How much of each direction lies in the weights that are guarded.

The reach is ``(Σ ‖P(w)‖² / ‖w‖²)^½`` over the weights. P(w) is w for a weight that is trained itself. Under LoRA, with
the factor F that limits the change and ``M = w Fᵀ``, ``‖P(w)‖² = ⟨M (F Fᵀ)⁺, M⟩``.
"""

from collections.abc import Sequence

from weightwatch.guard.weight import Adapted, Direct, oriented
from weightwatch.measure.low_rank import pseudo_inverses
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.precision import wide

NOTHING = 0.01
"""Reach below which there is nothing of a direction in what is trained that a guard could take back."""


def require_reach(weights: Sequence[Direct | Adapted], directions: Sequence[Direction]) -> None:
    """Refuse a direction of which next to nothing lies in what is trained. θ₀ is not read.

    Args:
        weights: The weights that are guarded.
        directions: The directions, in the order of the weights' positions.

    Raises:
        WeightWatchError: The reach of a direction is below ``NOTHING``, or a factor is NaN or infinite.
    """
    within = [0.0] * len(directions)
    for weight in weights:
        for k, w in weight.directions.items():
            within[k] += directions[k].squares[weight.name] if isinstance(weight, Direct) else _within(weight, w)
    for direction, square in zip(directions, within, strict=True):
        reach = (square / sum(direction.squares.values())) ** 0.5
        if not reach >= NOTHING:
            raise WeightWatchError(
                f"Direction {direction.name!r} has a reach of {reach:.2g} in the guarded weights, so there is "
                "nothing to keep out. Guard the layers it was built on, or train with a larger rank."
            )


def _within(weight: Adapted, w: Delta) -> float:
    """Return ‖P(w)‖²."""
    f = weight.limit.float()
    limit = f if weight.by_left else f.T  # Fᵀ
    turned = oriented(w, weight.by_left)
    if isinstance(turned, LowRank):
        rows, columns = (each.to(limit) for each in turned.oriented)
        seen = rows @ (columns @ limit)
    else:
        seen = turned.to(limit) @ limit
    inverse = pseudo_inverses(wide(limit.T @ limit)[None])[0].to(seen)
    return float(wide(seen @ inverse * seen).sum())
