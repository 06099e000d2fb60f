"""The figures of one tensor's change along directions, where it is not factors alone.

* Factors: see ``weightwatch.factored``.
* Fully trained tensors: blocks of θ_t − θ₀ in fp32, their sums in fp64. There P(w) = w.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from weightwatch.change import Change, Difference, Merged, Rescaled, Streamed
from weightwatch.factored import DEPENDENT, Figures, Found, pseudo_inverses
from weightwatch.fused import pass_over
from weightwatch.shards import Box, whole
from weightwatch.vectors.delta import LowRank, dot, wide

_PART = 1 << 24  # elements of θ₀ that are brought to another device at a time
_BLOCK = 1 << 19  # elements whose change is multiplied with a direction's factors at a time


def figures(change: Change, found: Found) -> Figures:
    """Measure one change.

    Args:
        change: The change, or this process's part of it; not one that is streamed, nor factors.
        found: The directions that have the tensor.
    """
    match change:
        case Rescaled():
            return _rescaled(change, found)
        case Merged():
            return _merged(change, found)
        case Difference():
            return _full(change, found)
        case _:
            raise TypeError(change)


def _rescaled(change: Rescaled, found: Found) -> Figures:
    """Measure a weight under DoRA, whose change is ``d ∘ W₀ + L R``, row by row.

    With pᵢ = ‖W₀ᵢ‖², qᵢ = ⟨W₀ᵢ,(LR)ᵢ⟩ and vᵢ = ‖(LR)ᵢ‖², ‖τ‖² = Σ dᵢ² pᵢ + 2 dᵢ qᵢ + vᵢ and
    ⟨τ,w⟩ = Σ dᵢ ⟨W₀ᵢ,wᵢ⟩ + ⟨(LR)ᵢ,wᵢ⟩. A row can move in the row space of R and along W₀ᵢ: P projects on both.
    """
    stretch = change.stretch()
    right = change.factors.right
    weight = stretch.weight.to(right.device, torch.float32)
    rows, left = wide(stretch.rows), wide(stretch.left)
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
    """Measure a change that is worked out as a full tensor; ‖P(w)‖² is left to the caller."""
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


def _full(change: Difference, found: Found) -> Figures:
    """Measure what is held of a fully trained tensor; ‖P(w)‖² is left to the caller."""
    held = change.held
    device = held.pieces[0].values.device if held.pieces else torch.device("cpu")
    zero = wide(torch.zeros((), device=device))
    low = {k: w.to(device) for k, w in found if isinstance(w, LowRank)}
    dense = {k: w for k, w in found if isinstance(w, Tensor)}
    inner = dict.fromkeys(low, zero)
    sums = zero.new_zeros(1 + len(dense))
    for box, now in _parts(change, _BLOCK if low else _PART if device.type != "cpu" else None):
        before = change.start(box).to(device).reshape(now.shape)
        parts = [w.reshape(held.shape)[box].to(device).reshape(-1) for w in dense.values()]
        sums = sums + wide(pass_over(now.reshape(-1), before.reshape(-1), parts, held.dtype))
        if low:
            block = now.float() - before.to(held.dtype).float()
            inner = {k: inner[k] + along(w, block, box) for k, w in low.items()}
    own, *others = sums.unbind()
    inner.update(zip(dense, others, strict=True))
    return own, [inner[k] for k, _ in found], [zero] * len(found)


def _parts(change: Difference, size: int | None) -> Iterator[tuple[Box, Tensor]]:
    """Yield what is held of a tensor, at most so many elements at a time (but whole rows); None: all at once."""
    for piece in change.held.pieces:
        values, box = piece.values, piece.box
        if not box or size is None or values.numel() <= size:
            yield box, values
            continue
        step = max(1, size * len(values) // values.numel())
        for first in range(0, len(values), step):
            last = min(len(values), first + step)
            yield (slice(box[0].start + first, box[0].start + last), *box[1:]), values[first:last]


def is_full(change: Change) -> bool:
    """Whether every element of a tensor can change freely, as far as can be told, so that P(w) = w."""
    return isinstance(change, Difference | Streamed | Merged)


def along(w: LowRank, block: Tensor, box: Box) -> Tensor:
    """Return ⟨τ,w⟩ over one block of a full tensor's change, w being in factors: Σ (Lᵀ τ) ∘ R.

    Args:
        w: The direction, on the block's device.
        block: The change in fp32.
        box: Where in the whole tensor the block lies.
    """
    left, right = (w.right.T, w.left.T) if w.transposed else (w.left, w.right)
    left, right = left[box[0]].to(block), right[:, box[1]].to(block)
    return wide((left.T @ block) * right).sum()


def freedom(change: Change | None) -> float:
    """Return how many elements training can choose freely: out · r under LoRA, all of a full tensor."""
    match change:
        case None:
            return 0.0
        case LowRank():
            return float(change.left.numel() if change.limited == "right" else change.right.numel())
        case Rescaled():
            return float(change.factors.left.numel() + len(change.factors.left))
        case _:
            return float(prod(change.shape))
