"""Measuring an update against directions: per tensor, the sums from which every figure of a reading is one division.

All sums are additive over tensors and shards, so layers, module kinds and the model are sums of rows, and the parts of
several processes are one ``all_reduce``. What one tensor contributes is worked out in ``measure.other_adapters``
and ``measure.low_rank``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from weightwatch.measure.dense import tiny, together
from weightwatch.measure.low_rank import Figures, Found, OnDisk, alike, factored
from weightwatch.measure.other_adapters import figures, freedom, is_full
from weightwatch.measure.streaming import stream
from weightwatch.update.change import Change, Difference, Rescaled, Streamed
from weightwatch.update.live import resized
from weightwatch.update.sharding.ranks import ALONE, Floats, Ranks
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import exact, wide

_SAMPLES = 3  # columns of the table by which copies are compared
_SAMPLED = 1024  # values of each tensor by which processes make sure that their copies are equal
_APART = 1e-3  # copies may differ by this share: kernels that add in another order are no fault


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
            table = np.zeros((len(update), 1 + 2 * len(directions)))
            lines = {name: line for line, name in enumerate(update)}
            mine = _shares({name: change for name, change in update.items() if name not in out}, ranks)
            for names, columns, sums in list(_figures(mine, directions)):  # read at the end: no device waits in between
                table[np.ix_([lines[name] for name in names], columns)] = torch.stack(sums, -1).cpu().numpy()
            return cls(update, directions, out, np.concatenate([table, _samples(update, ranks)], 1))

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
        full = np.array([name in measured and is_full(measured[name]) for name in names])
        return Sums(
            names=names,
            sizes=tuple(prod(shapes[name]) for name in names),
            update=np.maximum(table[:, 0], 0.0),
            inner=table[:, 1 : 1 + count],
            reached=np.where(full[:, None], direction, np.clip(table[:, 1 + count :], 0.0, direction)),
            direction=direction,
            freedom=np.array([freedom(measured.get(name)) for name in names], dtype=np.float64),
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


def _figures(
    changes: Mapping[str, Change], directions: Sequence[Direction]
) -> Iterator[tuple[Sequence[str], Sequence[int], list[Tensor]]]:
    """Yield names of tensors, columns of the table, and for each column its values."""

    def found(name: str, lazily: bool = False) -> Found:
        having = ((k, direction) for k, direction in enumerate(directions) if name in direction.deltas)
        return [(k, OnDisk(d, name) if lazily and d.on_disk else d.deltas[name]) for k, d in having]

    def line(measured: Found, figures: Figures) -> tuple[list[int], list[Tensor]]:
        own, inner, reached = figures
        places = [1 + k for k, _ in measured]
        return [0, *places, *(len(directions) + place for place in places)], [own, *inner, *reached]

    for name, own, along in stream({n: c for n, c in changes.items() if isinstance(c, Streamed)}, directions):
        yield [name], [0, *(1 + k for k in along)], [own, *along.values()]
    in_factors = {name: change for name, change in changes.items() if isinstance(change, LowRank)}
    theirs = {name: found(name, lazily=True) for name in in_factors}
    for names in alike(in_factors, theirs):
        several = [theirs[name] for name in names]
        yield names, *line(several[0], factored([in_factors[name] for name in names], several))
    full = {name: change for name, change in changes.items() if isinstance(change, Difference)}
    theirs = {name: found(name) for name in full}
    measured: set[str] = set()
    for names in tiny(full, theirs):
        several = [theirs[name] for name in names]
        yield names, *line(several[0], together([full[name] for name in names], several))
        measured.update(names)
    for name, change in changes.items():
        if name not in measured and not isinstance(change, Streamed | LowRank):
            yield [name], *line(ours := found(name), figures(change, ours))


def _shares(update: Mapping[str, Change], ranks: Ranks) -> dict[str, Change]:
    """Return what this process measures: its part of each trained tensor, and a fair number of the adapters."""
    if ranks.count == 1:
        return dict(update)
    mine: dict[str, Change] = {}
    load = [0.0] * ranks.count
    for name, change in update.items():
        if isinstance(change, Difference):
            mine[name] = change.of(ranks.share(change.local))
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
                local = change.left
            case Rescaled():
                local = change.factors.left
            case Difference(local=whole) if not whole.sharded:
                local = whole.pieces[0].values
            case _:
                continue
        flat = local.reshape(-1)[:: max(1, local.numel() // _SAMPLED)].float()
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
