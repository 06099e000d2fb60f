"""Joint projection off several directions, for many tensors at once: which multiples of them are taken back.

The movement τ of a tensor is to satisfy ``⟨τ,w_k⟩ ≤ h_k`` for K directions. What may be taken back is a sum of ``p_k``:
w_k itself where each element is trained, its projection P(w_k) on what an adapter can express otherwise. The smallest
such change is ``τ − Σ c_k p_k`` with c ≥ 0 and ``c_k = 0`` wherever the bound is not reached. With G = ⟨p_k,p_l⟩, these
c are those of a small quadratic program. Directions of one behaviour are far from orthogonal, so taking back one after
the other would leave part of the first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.precision import wide

SWEEPS = 1000
"""Largest number of sweeps over the K coefficients. Directions with a cosine of 0.99 take about 500."""
_SETTLED = 1e-12  # change of a coefficient, as a share of the largest one, below which a sweep has ended
_NOTHING = 1e-12  # share of the largest ‖p‖² of a tensor's directions below which one is nothing to take back
_ROUNDING = 1e-12  # share of the largest squared singular value below which one is zero


def coefficients(inner: Tensor, gram: Tensor, high: Tensor, low: Tensor | None = None) -> Tensor:
    """Return how much of each direction is taken back.

    Args:
        inner: ⟨τ,w_k⟩, shape (T, K), fp64.
        gram: ⟨p_k,p_l⟩, shape (T, K, K).
        high: The largest ⟨τ,w_k⟩ allowed, shape (T, K).
        low: The smallest one allowed. Default: there is none, so that movement away from a direction is never undone.

    Returns:
        c, shape (T, K): positive where movement towards a direction is taken back, negative away from it. NaN where a
        sum of the tensor is not finite.

    Example:
        >>> inner, gram = torch.tensor([[3.0, -1.0]]).double(), torch.eye(2).double()[None]
        >>> coefficients(inner, gram, torch.ones(1, 2).double()).tolist()
        [[2.0, 0.0]]
    """
    square = gram.diagonal(dim1=-2, dim2=-1)
    present = square > _NOTHING * square.amax(-1, keepdim=True)
    divisor = torch.where(present, square, torch.inf)
    taken = torch.zeros_like(inner)
    count = inner.shape[-1]
    for _ in range(SWEEPS if count > 1 else 1):
        before = taken.clone()
        for k in range(count):
            rest = inner[..., k] - (gram[..., k, :] * taken).sum(-1) + square[..., k] * taken[..., k]
            above = (rest - high[..., k]) / divisor[..., k]
            found = above.clamp(min=0)
            if low is not None:
                found = found + ((rest - low[..., k]) / divisor[..., k]).clamp(max=0)
            taken[..., k] = torch.where(present[..., k], found, 0.0)
        if count == 1 or bool(((taken - before).abs() <= _SETTLED * taken.abs().amax()).all()):
            break
    bad = ~(inner.isfinite().all(-1, keepdim=True) & gram.isfinite().flatten(-2).all(-1, keepdim=True))
    return torch.where(bad, torch.nan, taken)


def output_basis(changes: Sequence[Delta], rank: int) -> Tensor:
    """Return the strongest output directions of a tensor: the leading left singular vectors of [w₁, w₂, …].

    Args:
        changes: The directions' changes of the tensor, each of shape (out, in), or (out,).
        rank: Largest number of vectors.

    Returns:
        Orthonormal columns, shape (out, at most ``rank``), in fp32. Singular vectors with a value of zero are left out.
    """
    tall = torch.cat([_same_rows(change) for change in changes], 1)
    if tall.shape[0] <= tall.shape[1]:
        values, vectors = torch.linalg.eigh(tall @ tall.T)
    else:
        values, vectors = torch.linalg.eigh(tall.T @ tall)
        vectors = tall @ vectors
    order = values.argsort(descending=True)[:rank]
    order = order[values[order] > _ROUNDING * values.amax()]
    if not len(order):
        return vectors[:, :0].float()
    return torch.linalg.qr(vectors[:, order])[0].float()


def _same_rows(change: Delta) -> Tensor:
    """Return a matrix C with ``C Cᵀ = w wᵀ`` that is no wider than the change's rank, in fp64."""
    if isinstance(change, LowRank):
        rows, columns = (wide(half) for half in change.oriented)
        values, vectors = torch.linalg.eigh(columns @ columns.T)
        return rows @ (vectors * values.clamp(min=0).sqrt())
    return wide(change).reshape(len(change), -1)
