"""The monitor: directions and a reference, ready to measure a model in any training loop."""

import logging
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np
from torch import nn

from weightwatch.measure import Sums, measure
from weightwatch.peft_layers import base_changing_start, start_factors
from weightwatch.reading import Reading, read
from weightwatch.reference import Reference, Source
from weightwatch.update import Update, base_name, base_weight, full_parameters, tied_names
from weightwatch.vectors.checkpoint import local_folder
from weightwatch.vectors.delta import LowRank
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

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

    Raises:
        WeightWatchError: No direction, two of one name, an unknown one, or no checkpoint at ``reference``.

    Example:
        >>> monitor = Monitor(["evil"])                                # doctest: +SKIP
        >>> monitor.measure(model, step=40)["evil"].layers[3].cosine   # doctest: +SKIP
    """

    def __init__(self, directions: Watched | Sequence[Watched], *, reference: Source | Reference | None = None) -> None:
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
        self._checked: weakref.ref[nn.Module] | None = None

    def start(self, model: nn.Module) -> None:
        """Take the adapters as they are now for the start of the run: the update is measured from there.

        Needed before the first step where an adapter does not start at zero (PiSSA, one that is trained further).

        Args:
            model: The model before its first step.
        """
        self.reference = Reference(self.reference.weights, start_factors(model))

    def measure(self, model: nn.Module, *, step: int = 0) -> Reading:
        """Measure a model now.

        Args:
            model: The model in training: plain, PEFT or wrapped.
            step: Optimizer steps so far, for the reading.

        Raises:
            WeightWatchError: What ``check`` raises, or NaN in the model's weights.
        """
        if self._checked is None or self._checked() is not model:
            self.check(model)
        update = Update(model, self.reference)
        sums = measure(update, self.directions)
        return read(sums, self.directions, step=step, time=datetime.now(UTC).isoformat(timespec="milliseconds"))

    def check(self, model: nn.Module) -> None:
        """Make sure that every direction belongs to a model and can be seen in what it trains.

        Raises:
            WeightWatchError: A direction was built from another base or has other shapes; the trained parameters and
                a direction have nothing in common; θ₀ is unknown; the model's adapters are not supported.
        """
        if self.reference.weights is None and full_parameters(model):
            self.reference = Reference(_checkpoint(model).weights, self.reference.factors)
        kind = base_changing_start(model)
        if kind is not None and not self.reference.factors:
            raise WeightWatchError(
                f"An adapter was made with init_lora_weights={kind!r}, which changed the base, and its start is "
                "unknown. Call Monitor.start(model) before the first step, or use the callback, which does."
            )
        # A tied weight counts once, under the name that the model gives it first.
        tied = tied_names(model)
        self.directions = [direction.without(tied) for direction in self.directions]
        update, base = Update(model, self.reference), base_weight(model, self.reference)
        for direction in self.directions:
            direction.require(base, base_name(model) or "this model")
            if update.keys().isdisjoint(direction.deltas):
                raise WeightWatchError(
                    f"Direction {direction.name!r} and the trained parameters have no tensor in common: the direction "
                    f"has {next(iter(direction.deltas))}, …; trained are {next(iter(update))}, …. Train the modules "
                    f"it was built on ({', '.join(direction.card.target_modules)}), or build one on those you train."
                )
        self._warn_of_a_shared_start(update, measure(update, self.directions))
        self._checked = weakref.ref(model)

    def _warn_of_a_shared_start(self, update: Update, sums: Sums) -> None:
        """Say so when an adapter seems to have started from the same random numbers as a direction.

        Of a direction of other adapters, one of rank r on inputs of width d reaches ‖P(w)‖² / ‖w‖² of about r / d. Much
        more means that A is one of those that the direction was built with: every figure is then too large.
        """
        low = np.array([isinstance(update.get(name), LowRank) for name in sums.names])
        size = np.array([prod(update[name].shape) if name in update else 0 for name in sums.names])
        for k, direction in enumerate(self.directions):
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
