"""The figures of one tensor's change along directions, whatever form the change has.

* ‖τ‖² and ⟨τ,w⟩ for ``τ = L R`` and ``w = L' R'``: Σ (LᵀL) ∘ (R Rᵀ) and Σ (LᵀL') ∘ (R R'ᵀ).
* ‖P(w)‖², where P projects each row of w on the row space of R:
  tr((w Rᵀ)(R Rᵀ)⁺(w Rᵀ)ᵀ) = Σ (L'ᵀL') ∘ ((R R'ᵀ)ᵀ (R Rᵀ)⁺ (R R'ᵀ)).
* Fully trained tensors: blocks of θ_t − θ₀ in fp32, their sums in fp64. There P(w) = w.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from weightwatch.change import Change, Difference, Merged, Rescaled, Streamed
from weightwatch.fused import pass_over
from weightwatch.shards import Box, whole
from weightwatch.vectors.delta import LowRank, dot, wide
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.unmapped import boxes

_DEPENDENT = 1e-6  # eigenvalues of a Gram matrix of unit rows under this share of the largest are rounding
_INDEPENDENT = 0.03  # length of each unit row outside the span of those before it
_PART = 1 << 24  # elements of θ₀ that are brought to another device at a time
_BLOCK = 1 << 19  # elements whose change is multiplied with a direction's factors at a time

Found = Sequence[tuple[int, Any]]
"""Directions that have a tensor: position and what they are of it, a ``Delta`` or ``OnDisk``."""
Figures = tuple[Tensor, list[Tensor], list[Tensor]]
"""‖τ‖² of a tensor, and ⟨τ,w⟩ and ‖P(w)‖² for each direction that has it: fp64 scalars."""


@dataclass(frozen=True)
class OnDisk:
    """A dense tensor of a direction that stays on disk."""

    direction: Direction
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.direction.shape(self.name)


def figures(change: Change, found: Found, inverse: Tensor | None) -> Figures:
    """Measure one change.

    Args:
        change: The change, or this process's part of it; not one that is streamed.
        found: The directions that have the tensor.
        inverse: Pseudo-inverse of ``limiting_gram``, where the change has one.
    """
    match change:
        case LowRank() if inverse is not None:
            return _low_rank(change, found, inverse)
        case Rescaled() if inverse is not None:
            return _rescaled(change, found, inverse)
        case Merged():
            return _merged(change, found)
        case Difference():
            return _full(change, found)
        case _:
            raise TypeError(change)


def _low_rank(change: LowRank, found: Found, inverse: Tensor) -> Figures:
    """Measure a tensor that changes by factors.

    Args:
        change: The change.
        found: The directions.
        inverse: Pseudo-inverse of the Gram matrix of the limiting factor.
    """
    own = (change.left_gram * change.right_gram).sum()
    on_right = change.limited == "right"
    inner, reached = [], []
    for _, w in found:
        if isinstance(w, LowRank):
            aligned = w if w.transposed == change.transposed else LowRank(w.right.T, w.left.T, change.transposed)
            left, right = _crossed(change, aligned)
            inner.append((left * right).sum())
            shared, gram = (right, aligned.left_gram) if on_right else (left, aligned.right_gram)
            reached.append((gram.to(shared.device) * (shared.T @ inverse @ shared)).sum())
        else:
            if on_right:
                seen = wide(_times(w, change.right.T, change.transposed))
                inner.append((seen * wide(change.left)).sum())
                gram = seen.T @ seen
            else:
                seen = wide(_times(w, change.left, not change.transposed).T)
                inner.append((seen * wide(change.right)).sum())
                gram = seen @ seen.T
            reached.append((gram * inverse).sum())
    return own, inner, reached


def _crossed(change: LowRank, w: LowRank) -> tuple[Tensor, Tensor]:
    """Return ``LᵀL'``, shape (r, r'), and ``R R'ᵀ``, shape (r, r'), multiplied in fp32 and kept in fp64."""
    device = change.left.device
    left = change.left.T @ w.left.to(device, torch.float32)
    return wide(left), wide(change.right @ w.right.to(device, torch.float32).T)


def _times(w: "Tensor | OnDisk", factor: Tensor, transposed: bool) -> Tensor:
    """Return w, or its transpose, times a thin matrix; of a direction on disk some rows at a time."""
    if isinstance(w, Tensor):
        full = w.to(factor.device, torch.float32)
        return (full.T if transposed else full) @ factor
    product = torch.zeros(w.shape[transposed], factor.shape[1], device=factor.device)
    for box in boxes(w.shape, _PART):
        part = w.direction.part(w.name, box).to(factor.device, torch.float32)
        if transposed:
            product[box[1]] += part.T @ factor[box[0]]
        else:
            product[box[0]] += part @ factor[box[1]]
    return product


def _rescaled(change: Rescaled, found: Found, inverse: Tensor) -> Figures:
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
    moved = ((left @ change.factors.right_gram) * left).sum(1)
    own = (rows**2 * size + 2 * rows * along + moved).sum()
    outside = size - ((weight_seen @ inverse) * weight_seen).sum(1)
    outside = torch.where(outside > _DEPENDENT * size, outside, torch.inf)
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


def limiting_gram(change: Change) -> Tensor:
    """Return the Gram matrix of the factor that limits what a change can express, shape (r, r)."""
    match change:
        case LowRank(limited="left"):
            return change.left_gram
        case LowRank():
            return change.right_gram
        case Rescaled():
            return change.factors.right_gram
        case _:
            raise TypeError(change)


def pseudo_inverses(grams: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert Gram matrices on their ranges, all of one size at once.

    Rows are scaled to unit length first, so that small ones count like large ones. Of a matrix with NaN the inverse is
    NaN: that comes out in the sums and is reported there by the tensor's name.
    """
    alike: dict[tuple[int, torch.device], list[str]] = {}
    for name, gram in grams.items():
        alike.setdefault((len(gram), gram.device), []).append(name)
    found: dict[str, Tensor] = {}
    for names in alike.values():
        stacked = torch.stack([grams[name] for name in names])
        length = stacked.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        scale = torch.where(length > 0, 1 / length, 0.0)
        scales = scale[:, :, None] * scale[:, None, :]
        unit = stacked * scales
        finite = unit.isfinite().flatten(1).all(1)[:, None, None]
        inverse = _pseudo_inverse(torch.where(finite, unit, 0.0))
        found.update(zip(names, torch.where(finite, inverse * scales, torch.nan), strict=True))
    return found


def _pseudo_inverse(grams: Tensor) -> Tensor:
    """Invert symmetric matrices of unit diagonal: by Cholesky where their rows are clearly independent."""
    factor, failed = torch.linalg.cholesky_ex(grams)
    sound = (failed == 0) & (factor.diagonal(dim1=-2, dim2=-1).amin(-1) > _INDEPENDENT)
    if bool(sound.all()):
        return torch.cholesky_inverse(factor)
    return torch.linalg.pinv(grams, rtol=_DEPENDENT, hermitian=True)


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
