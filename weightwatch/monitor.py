"""The monitor: directions and a reference, ready to measure a model in any training loop."""

import logging
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from weightwatch.measure import measure
from weightwatch.peft_layers import base_changing_start, start_factors
from weightwatch.reading import Reading, read
from weightwatch.reference import Reference, Source
from weightwatch.update import Update, base_weight, full_parameters, tied_names
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

_logger = logging.getLogger("weightwatch")


class Monitor:
    """Measures how far a model has moved along behaviour directions.

    Args:
        directions: What to watch; names or paths are loaded. Those of kind ``control`` give the null band for z.
        reference: θ₀: a state dict, the path of the base checkpoint, or None: what the model tells. A model with
            adapters holds its own base; another one is compared with the checkpoint its config says it was loaded from.

    Raises:
        WeightWatchError: No direction, two of one name, an unknown one, or no checkpoint at ``reference``.

    Example:
        >>> monitor = Monitor(["evil"])                                # doctest: +SKIP
        >>> monitor.measure(model, step=40)["evil"].layers[3].cosine   # doctest: +SKIP
    """

    def __init__(
        self, directions: Sequence[Direction | str | Path], *, reference: Source | Reference | None = None
    ) -> None:
        self.directions = [d if isinstance(d, Direction) else Direction.load(d) for d in directions]
        names = [direction.name for direction in self.directions]
        if not names:
            raise WeightWatchError("Nothing to watch: name at least one direction.")
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
        self.directions = [direction.without(tied_names(model)) for direction in self.directions]
        update = Update(model, self.reference)
        title = getattr(getattr(model, "config", None), "_name_or_path", "") or "this model"
        for direction in self.directions:
            direction.require(base_weight(model, self.reference), title)
            shared = [name for name in update if name in direction.deltas]
            if not shared:
                raise WeightWatchError(
                    f"Direction {direction.name!r} and the trained parameters have no tensor in common: the direction "
                    f"has {next(iter(direction.deltas))}, …; trained are {next(iter(update))}, …. Train the modules "
                    f"it was built on ({', '.join(direction.card.target_modules)}), or build one on those you train."
                )
            for name in shared:
                if tuple(direction.deltas[name].shape) != tuple(update[name].shape):
                    raise WeightWatchError(
                        f"Direction {direction.name!r} has shape {tuple(direction.deltas[name].shape)} for {name} "
                        f"where the model has {tuple(update[name].shape)}. Use a direction built from this model."
                    )
        self._checked = weakref.ref(model)


def _checkpoint(model: nn.Module) -> Reference:
    """Return the reference that a model's config names: the local checkpoint folder it was loaded from."""
    path = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not path or not Path(path).is_dir():
        raise WeightWatchError(
            f"θ₀ of the fully trained tensors is unknown: the model's config names {path or 'no checkpoint'!r}, which "
            "is not a folder here. Pass reference=, a state dict or the path of the base checkpoint."
        )
    _logger.warning(
        "weightwatch: θ₀ is read from %s, which the model's config names. Pass reference= for another.", path
    )
    return Reference.of(path)
