"""Measuring an update against directions: per tensor, the sums from which every figure of a reading is one division.

All sums are additive over tensors (and shards), so layers, module kinds and the model are sums of rows.

* ‖τ‖² and ⟨τ,w⟩ for ``τ = L R`` and ``w = L' R'``: Σ (LᵀL) ∘ (R Rᵀ) and Σ (LᵀL') ∘ (R R'ᵀ).
* ‖P(w)‖², where P projects each row of w on the row space of R:
  tr((w Rᵀ)(R Rᵀ)⁺(w Rᵀ)ᵀ) = Σ (L'ᵀL') ∘ ((R R'ᵀ)ᵀ (R Rᵀ)⁺ (R R'ᵀ)).
* Fully trained tensors: blocks of θ_t − θ₀ in fp32, their sums in fp64. There P(w) = w.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightwatch.change import Change, Difference, Merged, Rescaled, Streamed
from weightwatch.fused import pass_over
from weightwatch.ranks import ALONE, Floats, Ranks
from weightwatch.shards import Box
from weightwatch.streaming import stream
from weightwatch.update import resized
from weightwatch.vectors.delta import LowRank, dot, exact, wide
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.unmapped import boxes

_DEPENDENT = 1e-6  # eigenvalues of a Gram matrix of unit rows under this share of the largest are rounding
_INDEPENDENT = 0.03  # length of each unit row outside the span of those before it
_SAMPLES = 3  # columns of the table by which copies are compared
_SAMPLED = 1024  # values of each tensor by which processes make sure that their copies are equal
_APART = 1e-3  # copies may differ by this share: kernels that add in another order are no fault
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


@dataclass(frozen=True)
class Sums:
    """The sums of one measurement: T tensors, K directions.

    Attributes:
        names: The T parameter names: those of the update and those of the directions.
        sizes: Number of elements of each tensor.
        update: ‖τ‖², shape (T,); 0 where the tensor is not trained.
        inner: ⟨τ,w⟩, shape (T, K).
        reached: ‖P(w)‖², shape (T, K).
        direction: ‖w‖², shape (T, K); 0 where the direction lacks the tensor.
        freedom: Elements that training can choose freely, shape (T,): out · r under LoRA, all of a full tensor.
        left_out: Tensors that could not be measured, each with the reason; they count as not trained.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    update: Floats
    inner: Floats
    reached: Floats
    direction: Floats
    freedom: Floats
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """What one process has measured: the tables of all processes added up are the measurement.

    Attributes:
        update: The change of each of the T trained tensors.
        directions: The K directions.
        left_out: Tensors that can't be compared, each with the reason.
        table: For each tensor ‖τ‖², ⟨τ,w⟩ and ‖P(w)‖² as far as this process has them, and three figures by which
            processes see whether they hold equal copies; shape (T, 1 + 2 K + 3).
    """

    update: Mapping[str, Change]
    directions: Sequence[Direction]
    left_out: Mapping[str, str]
    table: Floats

    @classmethod
    def of(
        cls,
        update: Mapping[str, Change],
        directions: Sequence[Direction],
        left_out: Mapping[str, str] | None = None,
        ranks: Ranks = ALONE,
    ) -> "Part":
        """Measure what falls to this process.

        Args:
            update: The change of each trained tensor.
            directions: On any device and of any precision; brought to the tensor's device, in fp32, one tensor at a
                time.
            left_out: Tensors that were left out of the update, each with the reason.
            ranks: The processes that share the work.

        Raises:
            WeightWatchError: A tensor's shape differs from the direction's.
        """
        out = {**(left_out or {}), **_resized(update, directions)}
        with exact():
            table = _table({name: change for name, change in update.items() if name not in out}, directions, ranks)
            rows = np.stack([table.get(name, np.zeros(1 + 2 * len(directions))) for name in update])
            return cls(update, directions, out, np.concatenate([rows, _samples(update, ranks)], 1))

    @staticmethod
    def shape(tensors: int, directions: int) -> tuple[int, int]:
        """Return the shape of the table, so that a process that could not measure can add zeros of it."""
        return tensors, 1 + 2 * directions + _SAMPLES

    def joined(self, table: Floats, ranks: Ranks = ALONE) -> Sums:
        """Turn the sum of all processes' tables into the measurement.

        Raises:
            WeightWatchError: All weights hold NaN or infinite values, or copies that should be equal differ between
                processes.
        """
        _require_equal_copies(self.update, table[:, -_SAMPLES:] / ranks.count)
        count = len(self.directions)
        table, out = table[:, :-_SAMPLES].copy(), dict(self.left_out)
        for name, line in zip(self.update, table, strict=True):
            if not np.isfinite(line).all():
                out[name] = "it holds NaN or infinite values"
                line[:] = 0.0
        if out.keys() >= self.update.keys():
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(out.items())[:3])
            raise WeightWatchError(f"None of the trained tensors can be measured. {reasons}.")
        names = tuple(dict.fromkeys([*self.update, *(name for d in self.directions for name in d.deltas)]))
        shapes = {name: d.shape(name) for d in self.directions for name in d.deltas if name not in self.update}
        shapes.update((name, tuple(change.shape)) for name, change in self.update.items())
        table = np.concatenate([table, np.zeros((len(names) - len(self.update), 1 + 2 * count))])
        direction = np.array([[d.squares.get(name, 0.0) for d in self.directions] for name in names])
        direction = direction.reshape(-1, count)
        measured = {name: change for name, change in self.update.items() if name not in out}
        full = np.array([name in measured and _is_full(measured[name]) for name in names])
        return Sums(
            names=names,
            sizes=tuple(prod(shapes[name]) for name in names),
            update=np.maximum(table[:, 0], 0.0),
            inner=table[:, 1 : 1 + count],
            reached=np.where(full[:, None], direction, np.clip(table[:, 1 + count :], 0.0, direction)),
            direction=direction,
            freedom=np.array([_freedom(measured.get(name)) for name in names], dtype=np.float64),
            left_out=out,
        )


def measure(
    update: Mapping[str, Change], directions: Sequence[Direction], left_out: Mapping[str, str] | None = None
) -> Sums:
    """Measure an update against K directions, in this process alone.

    Args:
        update: The change of each trained tensor.
        directions: See ``Part.of``.
        left_out: Tensors that were left out of the update, each with the reason.

    Raises:
        WeightWatchError: See ``Part.of`` and ``Part.joined``.
    """
    part = Part.of(update, directions, left_out)
    return part.joined(part.table)


def _table(update: Mapping[str, Change], directions: Sequence[Direction], ranks: Ranks) -> dict[str, Floats]:
    """Return this process's part of ‖τ‖², ⟨τ,w⟩ and ‖P(w)‖² of tensors, shape (1 + 2 K,) each."""
    count = len(directions)
    mine = _shares(update, ranks)
    inverses = _pseudo_inverses({name: _limiting_gram(c) for name, c in mine.items() if not _is_full(c)})
    rows: dict[str, tuple[list[int], list[Tensor]]] = {}
    for name, own, along in stream({n: c for n, c in mine.items() if isinstance(c, Streamed)}, directions):
        rows[name] = [0, *(1 + k for k in along)], [own, *along.values()]
    for name, change in mine.items():
        if isinstance(change, Streamed):
            continue
        lazily = isinstance(change, LowRank)
        found = [
            (k, OnDisk(d, name) if lazily and d.on_disk else d.deltas[name])
            for k, d in enumerate(directions)
            if name in d.deltas
        ]
        match change:
            case LowRank():
                own, inner, reached = _low_rank(change, found, inverses[name])
            case Rescaled():
                own, inner, reached = _rescaled(change, found, inverses[name])
            case Merged():
                own, inner, reached = _merged(change, found)
            case Difference():
                own, inner, reached = _full(change, found)
        places = [k for k, _ in found]
        rows[name] = [0, *(1 + k for k in places), *(1 + count + k for k in places)], [own, *inner, *reached]
    table: dict[str, Floats] = {}
    for name, (columns, figures) in rows.items():  # read at the end: a device need not wait in between
        table[name] = np.zeros(1 + 2 * count)
        table[name][columns] = torch.stack(figures).cpu().numpy()
    return table


def _shares(update: Mapping[str, Change], ranks: Ranks) -> dict[str, Change]:
    """Return what this process measures: its part of each trained tensor, and a fair number of the adapters."""
    mine: dict[str, Change] = {}
    load = [0.0] * ranks.count
    for name, change in update.items():
        if isinstance(change, Difference):
            mine[name] = change.of(ranks.share(change.held))
            continue
        owner = load.index(min(load))
        load[owner] += sum(change.shape) if isinstance(change, LowRank) else prod(change.shape)
        if owner == ranks.rank:
            mine[name] = change
    return mine


def _samples(update: Mapping[str, Change], ranks: Ranks) -> Floats:
    """Return s, s² and Σ|x| of each tensor that all processes hold whole, where s is the sum of some values x of it."""
    table = np.zeros((len(update), _SAMPLES))
    if ranks.count == 1:
        return table
    samples: dict[int, Tensor] = {}
    for line, change in enumerate(update.values()):
        match change:
            case LowRank():
                held = change.left
            case Rescaled():
                held = change.factors.left
            case Difference(held=whole) if not whole.sharded:
                held = whole.pieces[0].values
            case _:
                continue
        flat = held.reshape(-1)[:: max(1, held.numel() // _SAMPLED)].float()
        samples[line] = wide(torch.stack([flat.sum(), flat.abs().sum()]))
    for line, sample in samples.items():
        total, size = sample.tolist()
        table[line] = total, total**2, size
    return table


def _require_equal_copies(update: Mapping[str, Change], means: Floats) -> None:
    """Make sure that processes that should hold the same tensors do.

    Args:
        update: The changes.
        means: Over the processes, of what ``_samples`` gives.
    """
    spread = np.sqrt(np.maximum(means[:, 1] - means[:, 0] ** 2, 0.0))
    for name, apart in zip(update, spread > _APART * means[:, 2], strict=True):
        if apart:
            raise WeightWatchError(
                f"The processes disagree about {name}, of which each should hold the same copy: the training has "
                "gone apart. Make sure that the model is wrapped for data parallelism, and that all processes load "
                "the same weights."
            )


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
            plain = _plain(w).to(dense.device)
            inner.append(wide((plain.left.T @ dense.float()) * plain.right).sum())
        else:
            inner.append(dot(flat, w.reshape(-1).to(flat.device)))
    own = dot(flat, flat)
    return own, inner, [torch.zeros_like(own)] * len(found)


def _full(change: Difference, found: Found) -> Figures:
    """Measure what is held of a fully trained tensor; ‖P(w)‖² is left to the caller."""
    held = change.held
    device = held.pieces[0].values.device if held.pieces else torch.device("cpu")
    zero = wide(torch.zeros((), device=device))
    own, inner = zero, [zero] * len(found)
    low = {i: _plain(w).to(device) for i, (_, w) in enumerate(found) if isinstance(w, LowRank)}
    dense = {i: w for i, (_, w) in enumerate(found) if isinstance(w, Tensor)}
    for box, now in _parts(change, _BLOCK if low else _PART if device.type != "cpu" else None):
        before = change.start(box).to(device).reshape(now.shape)
        parts = [w.reshape(held.shape)[box].to(device) for w in dense.values()]
        sums = pass_over(now.reshape(-1), before.reshape(-1), [w.reshape(-1) for w in parts], held.dtype)
        own = own + sums[0]
        for i, part in zip(dense, sums[1:], strict=True):
            inner[i] = inner[i] + part
        if low:
            block = now.float() - before.to(held.dtype).float()
            for i, w in low.items():
                seen = w.left[box[0]].T @ block
                inner[i] = inner[i] + wide(seen * w.right[:, box[1]]).sum()
    return own, inner, [zero] * len(found)


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


def _is_full(change: Change) -> bool:
    """Whether every element of a tensor can change freely, as far as can be told, so that P(w) = w."""
    return isinstance(change, Difference | Streamed | Merged)


def _limiting_gram(change: Change) -> Tensor:
    match change:
        case LowRank(limited="left"):
            return change.left_gram
        case LowRank():
            return change.right_gram
        case Rescaled():
            return change.factors.right_gram
        case _:
            raise TypeError(change)


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


def _plain(w: LowRank) -> LowRank:
    """Return factors whose product has the orientation of the stored weight."""
    return LowRank(w.right.T, w.left.T) if w.transposed else w


def _freedom(change: Change | None) -> float:
    match change:
        case None:
            return 0.0
        case LowRank():
            return float(change.left.numel() if change.limited == "right" else change.right.numel())
        case Rescaled():
            return float(change.factors.left.numel() + len(change.factors.left))
        case _:
            return float(prod(change.shape))


def _resized(update: Mapping[str, Change], directions: Sequence[Direction]) -> dict[str, str]:
    """Return the tensors whose vocabulary was resized since a direction was built, with the reason to leave them out.

    Raises:
        WeightWatchError: A shape differs from a direction's in another way.
    """
    found = {}
    for direction in directions:
        for name in (name for name in update if name in direction.deltas):
            ours, theirs = tuple(update[name].shape), direction.shape(name)
            if ours != theirs:
                reason = f"direction {direction.name!r} has shape {theirs} for {name} where the model has {ours}"
                if not resized(name, theirs, ours):
                    raise WeightWatchError(f"{reason[0].upper()}{reason[1:]}. Use a direction built from this model.")
                found[name] = f"{reason}: the vocabulary was resized"
    return found
