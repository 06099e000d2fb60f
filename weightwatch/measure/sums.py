"""The additive table of a measurement: the sums of each tensor, from which a reading follows by one division each.

Sums are additive over tensors and shards: those of a layer, a module kind or the model are sums of rows, and the tables
of several processes are added by one ``all_reduce``. ``measure.low_rank``, ``measure.dense``, ``measure.streaming`` and
``measure.other_adapters`` compute the sums of single tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from torch import Tensor

from weightwatch.measure.dense import each, tiny, together
from weightwatch.measure.low_rank import Figures, Found, OnDisk, alike, factored
from weightwatch.measure.other_adapters import figures, freedom, is_full
from weightwatch.measure.replicas import COLUMNS, require_equal_replicas, sample_replicas
from weightwatch.measure.streaming import stream
from weightwatch.update.change import Change, Difference, Merged, Rescaled, Streamed
from weightwatch.update.live import resized
from weightwatch.update.sharding.ranks import ALONE, Floats, Ranks
from weightwatch.vectors.direction import OTHER_MODEL, Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import exact


@dataclass(frozen=True)
class Sums:
    """The sums of one measurement: T tensors, K directions.

    Attributes:
        names: The T parameter names: those of the update and those of the directions.
        sizes: Number of elements of each tensor.
        update: ‖τ‖², shape (T,); 0 for a tensor that is not trained.
        inner: ⟨τ,w⟩, shape (T, K).
        reached: ‖P(w)‖², shape (T, K).
        direction: ‖w‖², shape (T, K); 0 for a tensor that the direction does not have.
        freedom: Number of elements that training can choose freely, shape (T,): out · r under LoRA, all of a full
            tensor.
        left_out: Tensors that could not be measured, each with the reason. They count as not trained.
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
    """The local part of a measurement. The tables of all processes add up to the table of the measurement.

    Attributes:
        update: The change of each of the T trained tensors.
        directions: The K directions.
        left_out: Tensors that can't be compared, each with the reason.
        table: ‖τ‖², ⟨τ,w⟩ and ‖P(w)‖² of the local shards, and the columns of ``measure.replicas``; shape
            (T, 1 + 2 K + 3).
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
        """Measure the local shards, and this process's share of the adapters.

        Args:
            update: The change of each trained tensor.
            directions: The directions, on any device and in any precision. Each tensor is converted to fp32 on the
                device of the update when it is used.
            left_out: Tensors that were left out of the update, each with the reason.
            ranks: The processes that measure together.

        Raises:
            WeightWatchError: A tensor's shape differs from the direction's.
        """
        out = {**(left_out or {}), **resized_since(update, directions)}
        with exact():
            table = np.zeros((len(update), 1 + 2 * len(directions)))
            lines = {name: line for line, name in enumerate(update)}
            mine = _shares({name: change for name, change in update.items() if name not in out}, ranks)
            for names, columns, sums in list(_figures(mine, directions)):  # read at the end: no device waits in between
                table[np.ix_([lines[name] for name in names], columns)] = torch.stack(sums, -1).cpu().numpy()
            return cls(update, directions, out, np.concatenate([table, sample_replicas(update, ranks)], 1))

    @staticmethod
    def shape(tensors: int, directions: int) -> tuple[int, int]:
        """Return the shape of the table. A process that could not measure adds zeros of this shape."""
        return tensors, 1 + 2 * directions + COLUMNS

    def joined(self, table: Floats, ranks: Ranks = ALONE) -> Sums:
        """Return the measurement, given the sum of all processes' tables.

        Args:
            table: The tables of all processes, added up.
            ranks: The processes that measured.

        Raises:
            WeightWatchError: No tensor can be measured, or the processes have different copies of a tensor.
        """
        require_equal_replicas(self.update, table[:, -COLUMNS:] / ranks.count)
        count = len(self.directions)
        table, out = table[:, :-COLUMNS].copy(), dict(self.left_out)
        for name, line in zip(self.update, table, strict=True):
            if not np.isfinite(line).all():
                out[name] = "it has NaN or infinite values"
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
    """Measure an update against directions, in this process alone.

    Args:
        update: The change of each trained tensor.
        directions: The directions.
        left_out: Tensors that were left out of the update, each with the reason.

    Raises:
        WeightWatchError: A tensor's shape differs from a direction's, or no tensor can be measured.

    Example:
        >>> change = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0, 0.0]]))
        >>> w = Direction.from_tensors({"a.weight": torch.tensor([[1.0, 1.0], [0.0, 0.0]])}, name="w")
        >>> sums = measure({"a.weight": change}, [w])
        >>> sums.update.tolist(), sums.inner.tolist(), sums.reached.tolist(), sums.direction.tolist()
        ([45.0], [[3.0]], [[1.0]], [[2.0]])
    """
    part = Part.of(update, directions, left_out)
    return part.joined(part.table)


def _figures(
    changes: Mapping[str, Change], directions: Sequence[Direction]
) -> Iterator[tuple[Sequence[str], Sequence[int], list[Tensor]]]:
    """Yield the sums of groups of tensors: their names, columns of the table, and the values of each column."""

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
    larger = {name: change for name, change in full.items() if name not in measured}
    for name, measured_alone in each(larger, theirs):
        yield [name], *line(theirs[name], measured_alone)
    for name, change in changes.items():
        if isinstance(change, Rescaled | Merged):
            yield [name], *line(ours := found(name), figures(change, ours))


def _shares(update: Mapping[str, Change], ranks: Ranks) -> dict[str, Change]:
    """Return the changes that this process measures: its shards of full tensors, and a fair share of the adapters."""
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


def resized_since(update: Mapping[str, Change], directions: Sequence[Direction]) -> dict[str, str]:
    """Return the tensors whose vocabulary was resized since a direction was built, each with the reason.

    Raises:
        WeightWatchError: A tensor's shape differs from a direction's in another way.
    """
    found = {}
    for direction in directions:
        for name in (name for name in update if name in direction.deltas):
            ours, theirs = tuple(update[name].shape), direction.shape(name)
            if ours != theirs:
                source = f"Direction {direction.name!r}"
                found[name] = resized(name, theirs, ours, "the model", OTHER_MODEL, source)
    return found
