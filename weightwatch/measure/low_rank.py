"""Sums of tensors whose change is given by factors, along directions: many tensors at once.

* ‖τ‖² and ⟨τ,w⟩ for ``τ = s L R`` and ``w = L' R'``: s² Σ (LᵀL) ∘ (R Rᵀ) and s Σ (LᵀL') ∘ (R R'ᵀ).
* ‖P(w)‖², where P projects each row of w on the row space of R:
  tr((w Rᵀ)(R Rᵀ)⁺(w Rᵀ)ᵀ) = Σ (L'ᵀL') ∘ (Sᵀ (R Rᵀ)⁺ S) with S = R R'ᵀ.

Factors are multiplied tensor by tensor, in fp32. The results are small matrices, no larger than the ranks. Those of
many tensors are stacked and processed together, in fp64: one by one they would take longer than the products.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import wide
from weightwatch.vectors.weights.reader import boxes

DEPENDENT = 1e-6
"""Eigenvalues of a Gram matrix of unit rows below this share of the largest one are rounding errors."""

_INDEPENDENT = 0.03  # least length of each unit row outside the span of the rows before it
_PART = 1 << 24  # elements of a direction on disk that are read at a time
_TOGETHER = 32  # tensors, at least, whose small matrices are in memory at a time
_STACKED = 1 << 15  # elements of the small matrices of one kind that are in memory at a time, if there are more tensors
_SMALL = 1 << 16  # elements of the largest factor up to which one thread multiplies it

Found = Sequence[tuple[int, Any]]
"""The directions that have a tensor: the index of each, and its tensor as a ``Delta`` or ``OnDisk``."""
Figures = tuple[Tensor, list[Tensor], list[Tensor]]
"""‖τ‖²; ⟨τ,w⟩ of each direction; ‖P(w)‖² of each direction. In fp64: scalars, or of shape (tensors,)."""


@dataclass(frozen=True)
class OnDisk:
    """A dense tensor of a direction, on disk."""

    direction: Direction
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.direction.shape(self.name)


def alike(changes: Mapping[str, LowRank], found: Mapping[str, Found]) -> Iterator[list[str]]:
    """Yield groups of tensors that can be measured together: their small matrices have the same shapes.

    Args:
        changes: The changes by name.
        found: The directions that have each tensor.

    Yields:
        Names of some tensors.
    """
    groups: dict[object, list[str]] = {}
    for name, change in changes.items():
        kinds = tuple((k, w.rank if isinstance(w, LowRank) else None) for k, w in found[name])
        groups.setdefault((change.rank, change.limited, change.left.device, kinds), []).append(name)
    for names in groups.values():
        count = max(_TOGETHER, _STACKED // max(1, changes[names[0]].rank) ** 2)
        for first in range(0, len(names), count):
            yield names[first : first + count]


def factored(changes: Sequence[LowRank], found: Sequence[Found]) -> Figures:
    """Measure a group of tensors that ``alike`` yielded.

    Args:
        changes: The change of each tensor.
        found: The directions that have each tensor; the same directions for all.
    """
    with _one_thread(changes):
        return _factored(changes, found)


def _factored(changes: Sequence[LowRank], found: Sequence[Found]) -> Figures:
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


@contextmanager
def _one_thread(changes: Sequence[LowRank]) -> Iterator[None]:
    """Compute with one thread if the factors are small; a second one costs more than it saves, above all on busy cores.

    Args:
        changes: The changes whose factors are multiplied.
    """
    before = torch.get_num_threads()
    large = any(max(change.left.numel(), change.right.numel()) > _SMALL for change in changes)
    if before == 1 or large or changes[0].left.device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _products(change: LowRank, found: Found) -> Iterator[Tensor]:
    """Yield LᵀL and R Rᵀ, shape (r, r); then LᵀL' and R R'ᵀ, shape (r, r'), for each direction in factors.

    For a dense direction, yield ⟨L R,w⟩ and the Gram matrix of w Rᵀ (of wᵀL if L limits the change), shape (r, r).
    """
    left, right = change.left, change.right
    yield torch.mm(left.T, left)
    yield torch.mm(right, right.T)
    for _, w in found:
        if isinstance(w, LowRank):
            beside_left, beside_right = w.left, w.right.T
            if w.transposed != change.transposed:
                beside_left, beside_right = beside_right, beside_left
            yield torch.mm(left.T, beside_left.to(left.device, torch.float32))
            yield torch.mm(right, beside_right.to(right.device, torch.float32))
        else:
            on_right = change.limited == "right"
            free, limiting = (left, right.T) if on_right else (right.T, left)
            seen = wide(_times(w, limiting, change.transposed == on_right))
            yield (seen * wide(free)).sum()
            yield seen.T @ seen


def _free_gram(change: LowRank, w: LowRank) -> Tensor:
    """Return the Gram matrix of the direction's factor on the side where the change is not limited."""
    return w.left_gram if (change.limited == "right") == (w.transposed == change.transposed) else w.right_gram


def _times(w: "Tensor | OnDisk", factor: Tensor, transposed: bool) -> Tensor:
    """Return w, or its transpose, times a thin matrix. A direction on disk is read in blocks of rows."""
    if isinstance(w, Tensor):
        full = w.to(factor.device, torch.float32)
        return (full.T if transposed else full) @ factor
    product = torch.zeros(w.shape[transposed], factor.shape[1], dtype=torch.float32, device=factor.device)
    for box in boxes(w.shape, _PART):
        part = w.direction.part(w.name, box).to(factor.device, torch.float32)
        if transposed:
            product[box[1]] += part.T @ factor[box[0]]
        else:
            product[box[0]] += part @ factor[box[1]]
    return product


def pseudo_inverses(grams: Tensor) -> Tensor:
    """Return the pseudo-inverses of Gram matrices.

    Rows are scaled to unit length first, so that small rows count like large ones. The inverse of a matrix with NaN or
    infinite values is NaN: it appears in the sums and is reported there with the tensor's name.

    Args:
        grams: Gram matrices, shape (n, r, r).
    """
    length = grams.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = torch.where(length > 0, 1 / length, 0.0)
    scales = scale[:, :, None] * scale[:, None, :]
    unit = grams * scales
    finite = unit.isfinite().flatten(1).all(1)[:, None, None]
    inverse = _pseudo_inverse(torch.where(finite, unit, 0.0))
    return torch.where(finite, inverse * scales, torch.nan)


def _pseudo_inverse(grams: Tensor) -> Tensor:
    """Return the pseudo-inverses of symmetric matrices with unit diagonal: by Cholesky if clearly of full rank."""
    lower, failed = torch.linalg.cholesky_ex(grams)
    sound = (failed == 0) & (lower.diagonal(dim1=-2, dim2=-1).amin(-1) > _INDEPENDENT)
    if bool(sound.all()):
        return torch.cholesky_inverse(lower)
    return torch.linalg.pinv(grams, rtol=DEPENDENT, hermitian=True)
