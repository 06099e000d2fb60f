"""Sums of one tensor along directions, under DoRA and under adapters whose change is a full tensor.

Plain factors are in ``weightwatch.measure.low_rank``, fully trained tensors in ``weightwatch.measure.dense``.
"""

from math import prod

import torch

from weightwatch.measure.dense import along
from weightwatch.measure.low_rank import DEPENDENT, Figures, Found, pseudo_inverses
from weightwatch.update.change import Change, Difference, Merged, Rescaled, Streamed
from weightwatch.update.sharding.local import whole
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import dot, wide


def figures(change: Rescaled | Merged, found: Found) -> Figures:
    """Measure one change.

    Args:
        change: The change.
        found: The directions that have the tensor.
    """
    return _rescaled(change, found) if isinstance(change, Rescaled) else _merged(change, found)


def _rescaled(change: Rescaled, found: Found) -> Figures:
    """Measure a weight under DoRA, whose change is ``d ∘ W₀ + L R``, row by row.

    With pᵢ = ‖W₀ᵢ‖², qᵢ = ⟨W₀ᵢ,(LR)ᵢ⟩ and vᵢ = ‖(LR)ᵢ‖², ‖τ‖² = Σ dᵢ² pᵢ + 2 dᵢ qᵢ + vᵢ and
    ⟨τ,w⟩ = Σ dᵢ ⟨W₀ᵢ,wᵢ⟩ + ⟨(LR)ᵢ,wᵢ⟩. A row can change within the row space of R and along W₀ᵢ; P projects onto both.
    """
    parts = change.rescaling()
    right = change.factors.right
    weight = parts.weight.to(right.device, torch.float32)
    rows, left = wide(parts.rows), wide(parts.left)
    size = wide((weight**2).sum(1))
    weight_seen = wide(weight @ right.T)
    along = (left * weight_seen).sum(1)
    gram = change.factors.right_gram
    inverse = pseudo_inverses(gram[None])[0]
    moved = ((left @ gram) * left).sum(1)
    own = (rows**2 * size + 2 * rows * along + moved).sum()
    outside = size - ((weight_seen @ inverse) * weight_seen).sum(1)
    outside = torch.where(outside > DEPENDENT * size, outside, torch.inf)
    inner, reached = [], []
    for _, w in found:
        if isinstance(w, LowRank):
            aligned = w if w.transposed == change.transposed else LowRank(w.right.T, w.left.T)
            l2, r2 = aligned.left.to(right.device, torch.float32), aligned.right.to(right.device, torch.float32)
            with_weight = (wide(l2) * wide(weight @ r2.T)).sum(1)
            seen = wide(l2) @ wide(r2 @ right.T)
        else:
            dense = w.to(right.device, torch.float32)
            dense = dense.T if change.transposed else dense
            with_weight = wide((weight * dense).sum(1))
            seen = wide(dense @ right.T)
        inner.append((rows * with_weight + (left * seen).sum(1)).sum())
        projected = seen @ inverse
        rest = with_weight - (projected * weight_seen).sum(1)
        reached.append((projected * seen).sum() + (rest**2 / outside).sum())
    return own, inner, reached


def _merged(change: Merged, found: Found) -> Figures:
    """Measure a change that is a full tensor. Zeros are returned for ‖P(w)‖², which the caller sets."""
    dense = change.dense()
    flat = dense.reshape(-1)
    inner = []
    for _, w in found:
        if isinstance(w, LowRank):
            inner.append(along(w, dense.float(), whole(dense.shape)))
        else:
            inner.append(dot(flat, w.reshape(-1).to(flat.device)))
    own = dot(flat, flat)
    return own, inner, [torch.zeros_like(own)] * len(found)


def is_full(change: Change) -> bool:
    """Whether every element of a tensor can change freely, so that P(w) = w."""
    return isinstance(change, Difference | Streamed | Merged)


def freedom(change: Change | None) -> float:
    """Return the number of elements that training can choose freely: out · r under LoRA, all of a full tensor."""
    match change:
        case None:
            return 0.0
        case LowRank():
            return float(change.left.numel() if change.limited == "right" else change.right.numel())
        case Rescaled():
            return float(change.factors.left.numel() + len(change.factors.left))
        case _:
            return float(prod(change.shape))
