"""The figures of tensors that change by factors, along directions: many tensors at once.

* ‖τ‖² and ⟨τ,w⟩ for ``τ = s L R`` and ``w = L' R'``: s² Σ (LᵀL) ∘ (R Rᵀ) and s Σ (LᵀL') ∘ (R R'ᵀ).
* ‖P(w)‖², where P projects each row of w on the row space of R:
  tr((w Rᵀ)(R Rᵀ)⁺(w Rᵀ)ᵀ) = Σ (L'ᵀL') ∘ (Sᵀ (R Rᵀ)⁺ S) with S = R R'ᵀ.

Factors are multiplied tensor by tensor, in fp32. What comes of that are matrices no larger than the ranks: those of
many tensors are stacked and worked on together, in fp64, since one by one they would take longer than the products.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide
from weightwatch.vectors.weights.reader import boxes

DEPENDENT = 1e-6
"""Eigenvalues of a Gram matrix of unit rows under this share of the largest are rounding."""

_INDEPENDENT = 0.03  # length of each unit row outside the span of those before it
_PART = 1 << 24  # elements of a direction on disk that are brought to memory at a time
_TOGETHER = 32  # tensors whose small matrices are held at a time

Found = Sequence[tuple[int, Any]]
"""Directions that have a tensor: position and what they are of it, a ``Delta`` or ``OnDisk``."""
Figures = tuple[Tensor, list[Tensor], list[Tensor]]
"""‖τ‖², and ⟨τ,w⟩ and ‖P(w)‖² for each direction that has the tensor: fp64, a scalar each or one for each tensor."""


@dataclass(frozen=True)
class OnDisk:
    """A dense tensor of a direction that stays on disk."""

    direction: Direction
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.direction.shape(self.name)


def alike(changes: Mapping[str, LowRank], found: Mapping[str, Found]) -> Iterator[list[str]]:
    """Yield the names of tensors that can be measured at once: their matrices are of one size, and not too many.

    Args:
        changes: The changes by name.
        found: The directions that have each tensor.
    """
    groups: dict[object, list[str]] = {}
    for name, change in changes.items():
        kinds = tuple((k, w.rank if isinstance(w, LowRank) else None) for k, w in found[name])
        groups.setdefault((change.rank, change.limited, change.left.device, kinds), []).append(name)
    for names in groups.values():
        for first in range(0, len(names), _TOGETHER):
            yield names[first : first + _TOGETHER]


def factored(changes: Sequence[LowRank], found: Sequence[Found]) -> Figures:
    """Measure tensors that are alike.

    Args:
        changes: Their changes.
        found: The directions that have each: the same ones.
    """
    on_right = changes[0].limited == "right"
    products = [list(_products(change, ws)) for change, ws in zip(changes, found, strict=True)]
    stacks = (wide(torch.stack(product)) for product in zip(*products, strict=True))
    left, right = next(stacks), next(stacks)
    scales = torch.tensor([change.scale for change in changes], dtype=left.dtype, device=left.device)
    own = scales**2 * (left * right).sum((1, 2))
    inverses = pseudo_inverses(right if on_right else left)
    inner, reached = [], []
    for ws in zip(*found, strict=True):
        left, right = next(stacks), next(stacks)
        if isinstance(ws[0][1], LowRank):
            grams = [_free_gram(change, w).to(left.device) for change, (_, w) in zip(changes, ws, strict=True)]
            shared = right if on_right else left
            inner.append(scales * (left * right).sum((1, 2)))
            reached.append(((shared @ torch.stack(grams)) * (inverses @ shared)).sum((1, 2)))
        else:
            inner.append(scales * left)
            reached.append((right * inverses).sum((1, 2)))
    return own, inner, reached


def _products(change: LowRank, found: Found) -> Iterator[Tensor]:
    """Yield LᵀL and R Rᵀ, shape (r, r); then for each direction in factors LᵀL' and R R'ᵀ, shape (r, r').

    For a dense one, ⟨L R,w⟩ instead, and the Gram matrix, shape (r, r), of what the factor that limits sees of w.
    """
    left, right = change.left, change.right
    yield left.T @ left
    yield right @ right.T
    for _, w in found:
        if isinstance(w, LowRank):
            beside_left, beside_right = w.left, w.right.T
            if w.transposed != change.transposed:
                beside_left, beside_right = beside_right, beside_left
            yield left.T @ beside_left.to(left.device, torch.float32)
            yield right @ beside_right.to(right.device, torch.float32)
        else:
            on_right = change.limited == "right"
            free, limiting = (left, right.T) if on_right else (right.T, left)
            seen = wide(_times(w, limiting, change.transposed == on_right))
            yield (seen * wide(free)).sum()
            yield seen.T @ seen


def _free_gram(change: LowRank, w: LowRank) -> Tensor:
    """Return the Gram matrix of the direction's factor that stands where the change is not limited."""
    return w.left_gram if (change.limited == "right") == (w.transposed == change.transposed) else w.right_gram


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


def pseudo_inverses(grams: Tensor) -> Tensor:
    """Invert Gram matrices on their ranges, shape (n, r, r).

    Rows are scaled to unit length first, so that small ones count like large ones. Of a matrix with NaN the inverse is
    NaN: that comes out in the sums and is reported there by the tensor's name.
    """
    length = grams.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(length > 0, 1 / length, 0.0)
    scales = scale[:, :, None] * scale[:, None, :]
    unit = grams * scales
    finite = unit.isfinite().flatten(1).all(1)[:, None, None]
    inverse = _pseudo_inverse(torch.where(finite, unit, 0.0))
    return torch.where(finite, inverse * scales, torch.nan)


def _pseudo_inverse(grams: Tensor) -> Tensor:
    """Invert symmetric matrices of unit diagonal: by Cholesky where their rows are clearly independent."""
    factor, failed = torch.linalg.cholesky_ex(grams)
    sound = (failed == 0) & (factor.diagonal(dim1=-2, dim2=-1).amin(-1) > _INDEPENDENT)
    if bool(sound.all()):
        return torch.cholesky_inverse(factor)
    return torch.linalg.pinv(grams, rtol=DEPENDENT, hermitian=True)
