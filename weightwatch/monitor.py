"""The monitor: directions and a reference, ready to measure a model in any training loop."""

import logging
import weakref
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import nn

from weightwatch.measure.sums import Part, Sums
from weightwatch.reading.reading import Reading, read
from weightwatch.update.base_weights import Base, base_name, tied_names
from weightwatch.update.change import Change
from weightwatch.update.live import Parts, Update
from weightwatch.update.peft.adapters import changes_base, starts
from weightwatch.update.reference import Reference, Source, Weights
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.sources import local_folder

_logger = logging.getLogger("weightwatch")

_SUSPICIOUS = 4.0
_SUSPICIOUS_AT_LEAST = 0.2

Watched: TypeAlias = Direction | str | Path
"""A direction, or the name or path of a stored one."""


def load_all(watched: Watched | Sequence[Watched] | None) -> list[Direction]:
    """Return one or several directions, loaded where they are named; of None, none.

    Raises:
        WeightWatchError: See ``Direction.load``.
    """
    several = [watched] if isinstance(watched, Direction | str | Path) else watched or []
    return [one if isinstance(one, Direction) else Direction.load(one) for one in several]


class Monitor:
    """Measures how far a model has moved along behaviour directions.

    Args:
        directions: What to watch, one or several; names or paths are loaded. Those of kind ``control`` give the null
            band for z.
        reference: θ₀: a state dict, the path of the base checkpoint, or None: what the model tells. A model with
            adapters holds its own base; another one is compared with the checkpoint its config says it was loaded from.
        ranks: The processes that measure together, each its part, all at the same time. None: all where the model is
            sharded over them, else this one alone.

    Raises:
        WeightWatchError: No direction, two of one name, an unknown one, or no checkpoint at ``reference``.

    Example:
        >>> monitor = Monitor(["evil"])                                # doctest: +SKIP
        >>> monitor.measure(model, step=40)["evil"].layers[3].cosine   # doctest: +SKIP
    """

    def __init__(
        self,
        directions: Watched | Sequence[Watched],
        *,
        reference: Source | Reference | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.directions = load_all(directions)
        names = [direction.name for direction in self.directions]
        if not names:
            raise WeightWatchError(
                "Nothing to watch: name at least one direction, here or under `directions:` in the settings."
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise WeightWatchError(f"Two directions are called {twice[0]!r}; give each its own name.")
        self.reference = reference if isinstance(reference, Reference) else Reference.of(reference)
        self._ranks = ranks
        self._watched = self.directions
        self._found: Weights | None = None
        self._checked: weakref.ref[nn.Module] | None = None
        self._together = ALONE
        self._table: tuple[int, ...] = ()
        self._trained: frozenset[str] = frozenset()
        self._told: set[str] = set()

    def start(self, model: nn.Module) -> None:
        """Take the adapters as they are now for the start of the run: the update is measured from there.

        Needed before the first step where an adapter does not start at zero (PiSSA, one that is trained further).

        Args:
            model: The model before its first step.
        """
        parts = Parts(model)
        begun = starts(parts.layers, parts.adapter_values(self.ranks(parts)))
        self.reference = Reference(self.reference.weights, begun)

    def measure(self, model: nn.Module, *, step: int = 0) -> Reading:
        """Measure a model now.

        Where the model is sharded over processes (FSDP, ZeRO, tensor parallel), all of them have to call this.

        Args:
            model: The model in training: plain, PEFT, wrapped or sharded.
            step: Optimizer steps so far, for the reading.

        Raises:
            WeightWatchError: What ``check`` raises; all trained weights are NaN; processes disagree about a weight.
        """
        if self._checked is None or self._checked() is not model:
            self.check(model)
        sums = self._sums(model)
        self._warn_of_left_out(sums)
        return read(sums, self.directions, step=step, time=datetime.now(UTC).isoformat(timespec="milliseconds"))

    def check(self, model: nn.Module) -> None:
        """Make sure that every direction belongs to a model and can be seen in what it trains.

        Raises:
            WeightWatchError: A direction was built from another base or has other shapes; the trained parameters and
                a direction have nothing in common; θ₀ is unknown; the model's adapters are not supported; the
                processes hold different models.
        """
        if self._checked is None or self._checked() is not model:  # what was found out about another one is void
            self._trained = frozenset()
            if self._found is not None and self.reference.weights is self._found:
                self.reference = Reference(None, self.reference.adapters)
        self._checked = None
        parts = Parts(model)
        self._together = ranks = self.ranks(parts)
        kind = changes_base(model)
        if kind is not None and not self.reference.adapters:
            raise WeightWatchError(
                f"An adapter was made with init_lora_weights={kind!r}, which changed the base, and its start is "
                "unknown. Call Monitor.start(model) before the first step, or use the callback, which does."
            )
        # A tied weight counts once, under the name that the model gives it first.
        tied = tied_names(model)
        self.directions = [direction.without(tied) for direction in self._watched]
        update = self._agreed_update(model, parts)
        base = Base(model, self.reference, ranks)
        for direction in self.directions:
            ranks.agreed(partial(direction.require, base, base_name(model) or "this model"))
            if update.keys().isdisjoint(direction.deltas):
                raise WeightWatchError(
                    f"Direction {direction.name!r} and the trained parameters have no tensor in common: the direction "
                    f"has {next(iter(direction.deltas))}, …; trained are {next(iter(update))}, …. Train the modules "
                    f"it was built on ({', '.join(direction.card.target_modules)}), or build one on those you train."
                )
        self._table = Part.shape(len(update), len(self.directions))
        sums = self._sums(model)
        warn_of_a_shared_start(self.directions, update, sums)
        self._warn_of_left_out(sums)
        self._checked = weakref.ref(model)

    def ranks(self, parts: Parts) -> Ranks:
        """Return the processes that measure together: those that were named, else all where the model is sharded."""
        if self._ranks is not None:
            return self._ranks
        return Ranks.world() if parts.sharded else ALONE

    def _sums(self, model: nn.Module) -> Sums:
        """Measure this process's part and join it with the others'; a fault on one is a fault on all."""
        try:
            update = Update(model, self.reference, self._together, self._trained)
            part = Part.of(update, self.directions, update.left_out, self._together)
        except Exception as fault:
            self._together.add(np.zeros(self._table), fault)
            raise
        self._trained, self._table = update.trained, part.table.shape
        return part.joined(self._together.add(part.table), self._together)

    def _agreed_update(self, model: nn.Module, parts: Parts) -> Update:
        """Read the update for the first time, and make sure that all processes can, and train the same tensors."""

        def first() -> Update:
            if self.reference.weights is None and any(key not in parts.copies for key in parts.full()):
                self._found = _checkpoint(model).weights
                self.reference = Reference(self._found, self.reference.adapters)
            if isinstance(self.reference.weights, Checkpoint):
                weights = under_names(self.reference.weights, [canonical(key) for key in parts.full()])
                self.reference = Reference(weights, self.reference.adapters)
            return Update(model, self.reference, self._together)

        update = self._together.agreed(first)
        tensors = tuple((name, tuple(change.shape)) for name, change in update.items())
        for theirs in self._together.each(tensors):
            if theirs != tensors:
                raise WeightWatchError(
                    "The processes train different tensors (pipeline parallelism?), which is not supported. Train with "
                    "data parallelism, sharding (FSDP, ZeRO) or tensor parallelism."
                )
        return update

    def _warn_of_left_out(self, sums: Sums) -> None:
        for name in sums.left_out.keys() - self._told:
            _logger.warning("weightwatch: %s is left out of the measurement: %s.", name, sums.left_out[name])
        self._told = set(sums.left_out)


def _checkpoint(model: nn.Module) -> Reference:
    """Return the reference that a model's config names: the checkpoint it was loaded from, if it is on this machine."""
    path = local_folder(base_name(model))
    if path is None:
        raise WeightWatchError(
            "θ₀ of the fully trained tensors is unknown: the model's config names "
            f"{base_name(model) or 'nothing'}, and no checkpoint of that name is on this machine. Pass reference=, a "
            "state dict or the path of the base checkpoint."
        )
    _logger.warning("weightwatch: θ₀ is read from %s, as the model's config says. Pass reference= for another.", path)
    return Reference.of(path)


def warn_of_a_shared_start(directions: Sequence[Direction], update: Mapping[str, Change], sums: Sums) -> None:
    """Say so when an adapter seems to have started from the same random numbers as a direction.

    Of a direction of other adapters, one of rank r on inputs of width d reaches ‖P(w)‖² / ‖w‖² of about r / d. Much
    more means that A is one of those that the direction was built with: every figure is then too large.
    """
    low = np.array([_drawn(update.get(name)) for name in sums.names])
    size = np.array([prod(update[name].shape) if name in update else 0 for name in sums.names])
    for k, direction in enumerate(directions):
        rows = low & (sums.direction[:, k] > 0)
        if rows.any():
            reached = sums.reached[rows, k].sum() / sums.direction[rows, k].sum()
            expected = sums.freedom[rows].sum() / size[rows].sum()
            if reached > max(_SUSPICIOUS * expected, _SUSPICIOUS_AT_LEAST):
                _logger.warning(
                    "weightwatch: the adapters reach %.0f %% of direction %r where %.0f %% is usual for their "
                    "rank. They seem to share their random start with it, which makes every figure too large: "
                    "train with another seed.",
                    100 * reached**0.5,
                    direction.name,
                    100 * expected**0.5,
                )


def _drawn(change: Change | None) -> bool:
    """Whether a change is made of factors of which one starts at random: not of chosen rows (trained tokens)."""
    rows = (
        isinstance(change, LowRank) and change.limited == "left" and bool((change.left * (1 - change.left) == 0).all())
    )
    return isinstance(change, LowRank) and not rows
