"""The monitor: directions and a reference, ready to measure a model in any training loop."""

import gc
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import nn

from weightwatch.measure.sums import Part, Sums
from weightwatch.reading.reading import Reading, read
from weightwatch.update.base_weights import BaseWeights
from weightwatch.update.change import Change
from weightwatch.update.frozen import FrozenBase
from weightwatch.update.heads import counted_once
from weightwatch.update.layout import Layout
from weightwatch.update.live import Update
from weightwatch.update.model_view import ModelView
from weightwatch.update.peft.adapters import starts
from weightwatch.update.reference import Reference, Source, Weights
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError, interrupts
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.sources import local_folder

_logger = logging.getLogger("weightwatch")

_SUSPICIOUS = 4.0
_SUSPICIOUS_AT_LEAST = 0.2

Watched: TypeAlias = Direction | str | Path
"""A direction, or the name or path of a saved one."""


def load_all(watched: Watched | Sequence[Watched] | None) -> list[Direction]:
    """Return one or several directions, loaded where they are named; of None, none.

    Raises:
        WeightWatchError: See ``Direction.load``.
    """
    several = [watched] if isinstance(watched, Direction | str | Path) else watched or []
    return [one if isinstance(one, Direction) else Direction.load(one) for one in several]


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the collector of cycles: a check makes many objects and no cycles, and a full pass takes 0.2 s here."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


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
        >>> import torch
        >>> from weightwatch import Direction, Monitor
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> start = {"weight": model.weight.detach().clone()}
        >>> up = Direction.from_tensors({"weight": torch.tensor([[1.0, 0.0]])}, name="up")
        >>> monitor = Monitor([up], reference=start)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(torch.tensor([[3.0, 4.0]]))
        >>> reading = monitor.measure(model, step=1)
        >>> round(reading["up"].cosine, 3), round(reading["up"].dose, 3), round(reading.update_norm, 3)
        (0.6, 3.0, 5.0)
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
        self._validated: weakref.ref[nn.Module] | None = None
        self._together = ALONE
        self._table: tuple[int, ...] = ()
        self._trained: frozenset[str] = frozenset()
        self._layout: Layout | None = None
        self._told: set[str] = set()
        self._rounded = False

    def start(self, model: nn.Module) -> None:
        """Take the adapters as they are now for the start of the run: the update is measured from there.

        Needed before the first step where an adapter does not start at zero (PiSSA, one that is trained further).

        Args:
            model: The model before its first step.
        """
        view = ModelView(model, self._ranks)
        adapters = starts(view.adapters, view.values)
        self.reference = replace(
            self.reference, adapters=adapters, frozen=FrozenBase.of(view), sampled=None, taken=True
        )

    def measure(self, model: nn.Module, *, step: int = 0) -> Reading:
        """Measure a model now, down to single tensors.

        Where the model is sharded over processes (FSDP, ZeRO, tensor parallel), all of them have to call this.

        Args:
            model: The model in training: plain, PEFT, wrapped or sharded.
            step: Optimizer steps so far, for the reading.

        Raises:
            WeightWatchError: What ``validate`` raises; all trained weights are NaN; processes disagree about a weight.
        """
        return self.read(self.view(model), step, tensors=True)

    @_uncollected()
    def view(self, model: nn.Module) -> ModelView:
        """Return the view of a model that the other methods take; it holds for one check.

        Raises:
            WeightWatchError: See ``ModelView``.
        """
        known = self.knows(model)
        try:
            view = ModelView(model, self._ranks, self._trained if known else (), self._layout)
        except BaseException as fault:
            # the other processes are about to measure, and wait for this one's part
            if known and not interrupts(fault):
                self._together.add(np.zeros(self._table), fault)
            raise
        self._layout = view.layout
        return view

    @_uncollected()
    def read(self, view: ModelView, step: int, *, tensors: bool = False) -> Reading:
        """Measure a model, validating it first if it is a new one; see ``measure``.

        Args:
            view: The model now.
            step: Optimizer steps so far.
            tensors: Whether the reading has the scores of single tensors, too.
        """
        sums = self._sums(view) if self.knows(view.model) else self.validate(view)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return read(sums, self.directions, step=step, time=now, tensors=tensors)

    def validate(self, view: ModelView) -> Sums:
        """Make sure that every direction belongs to a model and can be seen in what it trains.

        Returns:
            The sums of a first measurement.

        Raises:
            WeightWatchError: A direction was built from another base or has other shapes; the trained parameters and
                a direction have nothing in common; θ₀ is unknown; the model's adapters are not supported; the
                processes hold different models.
        """
        if not self.knows(view.model) and self._found is not None and self.reference.weights is self._found:
            self.reference = replace(self.reference, weights=None, sampled=None)  # what was found for another model
        if not self.reference.taken:
            self.reference = replace(self.reference, frozen=None, sampled=None)
        self._validated, self._together = None, view.ranks
        if view.changed_by is not None and not self.reference.adapters:
            raise WeightWatchError(
                f"An adapter was made with init_lora_weights={view.changed_by!r}, which changed the base, and its "
                "start is unknown. Call Monitor.start(model) before the first step."
            )
        if view.adapters:
            _ = view.values  # puts sharded adapters together, which must not happen in `agreed`
        update = self._agreed_update(view)
        # A tied weight counts once, under the name that the model gives it first.
        tied = view.tied()
        self.directions = [counted_once(direction, tied, update) for direction in self._watched]
        base = BaseWeights(view, self.reference)
        for direction in self.directions:
            view.ranks.agreed(partial(direction.require, base, view.base_name or "this model"))
            if update.keys().isdisjoint(direction.deltas):
                every = next(watched for watched in self._watched if watched.name == direction.name).deltas
                raise WeightWatchError(
                    f"Direction {direction.name!r} and the trained parameters have no tensor in common: the direction "
                    f"has {next(iter(every))}, …; trained are {next(iter(update))}, …. Train the modules "
                    f"it was built on ({', '.join(direction.card.target_modules)}), or build one on those you train."
                )
        self._table = Part.shape(len(update), len(self.directions))
        sums = self._sums(view, update)
        warn_of_a_shared_start(self.directions, update, sums)
        self._validated = weakref.ref(view.model)
        return sums

    def knows(self, model: nn.Module) -> bool:
        """Whether a model is the one that was validated last."""
        return self._validated is not None and self._validated() is model

    def _sums(self, view: ModelView, update: Update | None = None) -> Sums:
        """Measure this process's part and join it with the others'; a fault on one is a fault on all."""
        try:
            update = update or Update(view, self.reference)
            part = Part.of(update, self.directions, update.left_out, view.ranks)
            self.reference.require_unchanged(view.direct)  # after reading, so that no part of it was overwritten before
        except BaseException as fault:
            if not interrupts(fault):
                view.ranks.add(np.zeros(self._table), fault)
            raise
        self._trained, self._table = view.trained - update.unfrozen, part.table.shape
        sums = part.joined(view.ranks.add(part.table), view.ranks)
        for name in sums.left_out.keys() - self._told:
            _logger.warning("weightwatch: %s is left out of the measurement: %s.", name, sums.left_out[name])
        self._told = set(sums.left_out)
        if update.rounded and not self._rounded:
            self._rounded = True
            _logger.warning(
                "weightwatch: %d frozen weights have changed by rounding, as when an adapter is merged into them and "
                "taken out again. The update is measured without that.",
                len(update.rounded),
            )
        return sums

    def _agreed_update(self, view: ModelView) -> Update:
        """Read the update for the first time, and make sure that all processes can, and train the same tensors."""

        def first() -> Update:
            if self.reference.weights is None and any(key not in view.copies for key in view.full):
                self._found = _named_checkpoint(view.base_name)
                self.reference = replace(self.reference, weights=self._found)
            if isinstance(self.reference.weights, Checkpoint):
                found = self.reference.weights is self._found
                weights = under_names(self.reference.weights, [canonical(key) for key in view.full])
                self._found = weights if found else self._found
                self.reference = replace(self.reference, weights=weights)
            frozen = self.reference.frozen or FrozenBase.of(view)
            sampled = self.reference.sampled or self.reference.sample(view.direct)
            self.reference = replace(self.reference, frozen=frozen, sampled=sampled)
            return Update(view, self.reference)

        update = view.ranks.agreed(first)
        tensors = tuple((name, tuple(change.shape)) for name, change in update.items())
        for theirs in view.ranks.each(tensors):
            if theirs != tensors:
                raise WeightWatchError(
                    "The processes train different tensors (pipeline parallelism?), which is not supported. Train with "
                    "data parallelism, sharding (FSDP, ZeRO) or tensor parallelism."
                )
        return update


def _named_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint that a model's config names, if it is on this machine."""
    path = local_folder(name)
    if path is None:
        raise WeightWatchError(
            f"θ₀ of the fully trained tensors is unknown: the model's config names {name or 'nothing'}, and no "
            "checkpoint of that name is on this machine. Pass reference=, a state dict or the path of the base "
            "checkpoint."
        )
    _logger.warning("weightwatch: θ₀ is read from %s, as the model's config says. Pass reference= for another.", path)
    return Checkpoint(path)


def warn_of_a_shared_start(directions: Sequence[Direction], update: Mapping[str, Change], sums: Sums) -> None:
    """Warn when an adapter seems to have started from the same random numbers as a direction.

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
