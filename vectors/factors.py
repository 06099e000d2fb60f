"""Weighted sums of changes of one weight: of factors in factors, of anything else as a dense tensor."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank, wide

Terms: TypeAlias = Sequence[tuple[float, Delta]]
"""Coefficients, each with its change."""


def combined(name: str, terms: Terms, tolerance: float) -> Delta | None:
    """Return Σ kᵢ Δᵢ of one weight; None where it is zero.

    Args:
        name: Of the parameter, for messages.
        terms: The coefficients and changes.
        tolerance: See ``refactored``.

    Raises:
        WeightWatchError: The changes differ in shape.
    """
    shapes = {tuple(change.shape) for _, change in terms}
    if len(shapes) > 1:
        raise WeightWatchError(
            f"The directions differ in the shape of {name}: {' and '.join(map(str, sorted(shapes)))}. "
            "Use directions built from one base model."
        )
    if not terms:
        return None
    thin = [(k, change) for k, change in terms if isinstance(change, LowRank)]
    if len(thin) == len(terms):
        return refactored(thin, tolerance)
    total = torch.zeros(shapes.pop(), dtype=torch.float64, device=_device(terms[0][1]))
    for k, change in terms:
        total.add_(_multiplied_out(change).to(total.device), alpha=k)
    return total.float() if bool(total.any()) else None


def refactored(terms: Sequence[tuple[float, LowRank]], tolerance: float) -> LowRank | None:
    """Return Σ kᵢ Lᵢ Rᵢ in factors of the least rank, which is at most that of the terms together.

    ``[√|k₁| L₁, …] = Q₁ T₁`` and ``[√|k₁| R₁; …]ᵀ = Q₂ T₂``, and then the singular values of ``T₁ T₂ᵀ``, all in fp64.

    Args:
        terms: The coefficients and changes, of one shape.
        tolerance: Singular values below this share of the product of the factors' norms are dropped.

    Returns:
        The sum, in fp32 and in the orientation of the first term; None where nothing is left.
    """
    first = terms[0][1]
    device = first.left.device
    lefts, rights = zip(*(_balanced(k, change.to(device, change.left.dtype)) for k, change in terms), strict=True)
    left, right = torch.cat(lefts, dim=1), torch.cat(rights, dim=0)
    (q1, t1), (q2, t2) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(t1 @ t2.T)
    keep = values > tolerance * left.norm() * right.norm()
    if not bool(keep.any()):
        return None
    count = int(keep.sum())
    root = values[:count].sqrt()
    rows, columns = q1 @ (u[:, :count] * root), (root[:, None] * v[:count]) @ q2.T
    if first.transposed:
        rows, columns = columns.T, rows.T
    left, right = (half.to(device, torch.float32).contiguous() for half in (rows, columns))
    return LowRank(left, right, first.transposed, first.limited)


def _balanced(k: float, change: LowRank) -> tuple[Tensor, Tensor]:
    """Return the factors of k L R as the weight is stored, in fp64, scaled so that both have one norm."""
    rows, columns = (wide(half) for half in change.stored)
    sizes = float(rows.norm()), float(columns.norm())
    if not all(sizes):
        return rows[:, :0], columns[:0]
    size = (abs(k) * sizes[0] * sizes[1]) ** 0.5
    return rows * (size / sizes[0] * (1 if k > 0 else -1)), columns * (size / sizes[1])


def _multiplied_out(change: Delta) -> Tensor:
    if isinstance(change, LowRank):
        rows, columns = change.stored
        return wide(rows) @ wide(columns)
    return wide(change)


def _device(change: Delta) -> torch.device:
    found = wide(change.left if isinstance(change, LowRank) else change[:0] if change.ndim else change)
    return found.device
