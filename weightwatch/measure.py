"""Measuring an update against directions: per tensor, the sums from which every figure of a reading is one division.

All sums are additive over tensors (and shards), so layers, module kinds and the model are sums of rows.

* ‖τ‖² and ⟨τ,w⟩ for ``τ = L R`` and ``w = L' R'``: Σ (LᵀL) ∘ (R Rᵀ) and Σ (LᵀL') ∘ (R R'ᵀ).
* ‖P(w)‖², where P projects each row of w on the row space of R:
  tr((w Rᵀ)(R Rᵀ)⁺(w Rᵀ)ᵀ) = Σ (L'ᵀL') ∘ ((R R'ᵀ)ᵀ (R Rᵀ)⁺ (R R'ᵀ)).
* Fully trained tensors: blocks of θ_t − θ₀ in fp32, their sums in fp64. There P(w) = w.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightwatch.update import Change, Difference
from weightwatch.vectors.delta import Delta, LowRank, dot, exact
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

Floats = npt.NDArray[np.float64]

_DEPENDENT = 1e-6  # eigenvalues of a Gram matrix of unit rows under this share of the largest are rounding


@dataclass(frozen=True)
class Sums:
    """The sums of one measurement: T tensors, K directions.

    Attributes:
        names: The T parameter names: those of the update and those of the directions.
        update: ‖τ‖², shape (T,); 0 where the tensor is not trained.
        inner: ⟨τ,w⟩, shape (T, K).
        reached: ‖P(w)‖², shape (T, K).
        direction: ‖w‖², shape (T, K); 0 where the direction lacks the tensor.
        freedom: Elements that training can choose freely, shape (T,): out · r under LoRA, all of a full tensor.
    """

    names: tuple[str, ...]
    update: Floats
    inner: Floats
    reached: Floats
    direction: Floats
    freedom: Floats


def measure(update: Mapping[str, Change], directions: Sequence[Direction]) -> Sums:
    """Measure an update against K directions.

    Args:
        update: The change of each trained tensor.
        directions: On any device and of any precision; brought to the tensor's device, in fp32, one tensor at a time.

    Raises:
        WeightWatchError: A tensor's shape differs from the direction's, or its weights hold NaN or infinite values.
    """
    names = tuple(dict.fromkeys([*update, *(name for d in directions for name in d.deltas)]))
    rows, count = [], len(directions)
    with exact():
        inverses = _pseudo_inverses({name: _limiting_gram(c) for name, c in update.items() if isinstance(c, LowRank)})
        for name, change in update.items():
            found = [(k, d.deltas[name]) for k, d in enumerate(directions) if name in d.deltas]
            for k, delta in found:
                _require_shape(name, change.shape, tuple(delta.shape), directions[k].name)
            if isinstance(change, LowRank):
                own, inner, reached = _low_rank(change, found, inverses[name])
            else:
                own, inner, reached = _full(change, found)
            places = [k for k, _ in found]
            rows.append(([0, *(1 + k for k in places), *(1 + count + k for k in places)], [own, *inner, *reached]))
    table = np.zeros((len(rows), 1 + 2 * count))
    for line, (columns, figures) in zip(table, rows, strict=True):  # read at the end: a device need not wait in between
        line[columns] = torch.stack(figures).cpu().numpy()
    for name, line in zip(update, table, strict=True):
        if not np.isfinite(line).all():
            raise WeightWatchError(f"{name} holds NaN or infinite values; the training has diverged there.")
    padding = np.zeros((len(names) - len(update), 1 + 2 * count))
    table = np.concatenate([table, padding])
    direction = np.array([[d.squares.get(name, 0.0) for d in directions] for name in names]).reshape(-1, count)
    full = np.array([isinstance(update.get(name), Difference) for name in names])
    return Sums(
        names=names,
        update=np.maximum(table[:, 0], 0.0),
        inner=table[:, 1 : 1 + count],
        reached=np.where(full[:, None], direction, np.clip(table[:, 1 + count :], 0.0, direction)),
        direction=direction,
        freedom=np.array([_freedom(update.get(name)) for name in names], dtype=np.float64),
    )


def _low_rank(
    change: LowRank, found: Sequence[tuple[int, Delta]], inverse: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return ‖τ‖², and ⟨τ,w⟩ and ‖P(w)‖² for each direction, of a tensor that changes by factors.

    Args:
        change: The change.
        found: The directions' positions and what they are of this tensor.
        inverse: Pseudo-inverse of the Gram matrix of the limiting factor.
    """
    own = (change.left_gram * change.right_gram).sum()
    on_right = change.limited == "right"
    device = change.left.device
    inner: dict[int, Tensor] = {}
    reached: dict[int, Tensor] = {}
    for k, w in found:
        if isinstance(w, LowRank):
            aligned = _oriented(w, change)
            left = (change.left.T @ aligned.left.to(device, torch.float32)).double()
            right = (change.right @ aligned.right.to(device, torch.float32).T).double()
            inner[k] = (left * right).sum()
            shared, gram = (right, aligned.left_gram) if on_right else (left, aligned.right_gram)
            reached[k] = (gram.to(device) * (shared.T @ inverse @ shared)).sum()
    for k, dense in found:
        if isinstance(dense, Tensor):
            full = dense.to(change.left.device, torch.float32)
            full = full.T if change.transposed else full
            if on_right:
                seen = (full @ change.right.T).double()
                inner[k], gram = (seen * change.left.double()).sum(), seen.T @ seen
            else:
                seen = (change.left.T @ full).double()
                inner[k], gram = (seen * change.right.double()).sum(), seen @ seen.T
            reached[k] = (gram * inverse).sum()
    return own, [inner[k] for k, _ in found], [reached[k] for k, _ in found]


def _full(change: Difference, found: Sequence[tuple[int, Delta]]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return ‖τ‖², and ⟨τ,w⟩ for each direction, of a fully trained tensor; ‖P(w)‖² is left to the caller."""
    device = change.current.device
    zero = torch.zeros((), dtype=torch.float64, device=device)
    own, inner = zero.clone(), [zero.clone() for _ in found]
    factors = [_plain(w).to(device) if isinstance(w, LowRank) else None for _, w in found]
    for rows, block in change.blocks():
        flat = block.reshape(-1)
        own += dot(flat, flat)
        for i, (_, w) in enumerate(found):
            low = factors[i]
            if low is not None:
                inner[i] += ((low.left[rows].T @ block) * low.right).double().sum()
            elif isinstance(w, Tensor):
                part = w.reshape(change.shape or (1,))[rows].to(device, torch.float32)
                inner[i] += dot(flat, part.reshape(-1))
    return own, inner, [zero] * len(found)


def _limiting_gram(change: LowRank) -> Tensor:
    return change.right_gram if change.limited == "right" else change.left_gram


def _pseudo_inverses(grams: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
        inverse = torch.linalg.pinv(torch.where(finite, unit, 0.0), rtol=_DEPENDENT, hermitian=True)
        found.update(zip(names, torch.where(finite, inverse * scales, torch.nan), strict=True))
    return found


def _plain(w: LowRank) -> LowRank:
    """Return factors whose product has the orientation of the stored weight."""
    return LowRank(w.right.T, w.left.T) if w.transposed else w


def _oriented(w: LowRank, change: LowRank) -> LowRank:
    return w if w.transposed == change.transposed else LowRank(w.right.T, w.left.T, change.transposed)


def _freedom(change: Change | None) -> float:
    if change is None:
        return 0.0
    if isinstance(change, LowRank):
        return float(change.left.numel() if change.limited == "right" else change.right.numel())
    return float(change.current.numel())


def _require_shape(name: str, ours: tuple[int, ...], theirs: tuple[int, ...], direction: str) -> None:
    if ours != theirs:
        raise WeightWatchError(
            f"Direction {direction!r} has shape {theirs} for {name} where the model has {ours}. "
            "Use a direction built from this model."
        )
