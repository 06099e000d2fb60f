"""A guard: keeps directions out of the update while training goes on."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from weightwatch.config import GuardSettings
from weightwatch.guard.conditions import chosen_weights, require, require_optimizer, require_whole
from weightwatch.guard.find import guarded, parts
from weightwatch.guard.momentum import Momentum
from weightwatch.guard.multiples import Multiples, Taken
from weightwatch.guard.parts import Part
from weightwatch.guard.preventative import Addition
from weightwatch.guard.reach import require_reach
from weightwatch.guard.snapshot import Snapshot
from weightwatch.guard.subspace import Subspace, sides
from weightwatch.guard.trained import Trained
from weightwatch.guard.weight import Adapted, Direct
from weightwatch.monitor import Monitor
from weightwatch.reading.reading import Guarded
from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.parameters import reshard_all
from weightwatch.update.sharding.ranks import ALONE
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.document import Document
from weightwatch.vectors.precision import exact

_logger = logging.getLogger("weightwatch")


class Guard:
    """Keeps directions out of the update of a model in training. It never moves the weights towards a direction.

    Call ``begin`` before the first step, ``before_step`` between the backward pass and the optimizer's step,
    ``after_step`` after that, and ``end`` when training ends. ``WeightWatchCallback`` does so itself.

    Args:
        monitor: Watches the directions and the witness, and knows θ₀.
        settings: The settings, or a dict of them.

    Attributes:
        settings: The settings.
        directions: The guarded directions.
        armed: Whether the guard is on. With ``when: alert`` it begins switched off.

    Raises:
        WeightWatchError: A bad setting; a direction or a witness that is not watched, is a control, or is the other.

    Example:
        >>> from weightwatch import Direction, Monitor
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> start = {"weight": model.weight.detach().clone()}
        >>> up = Direction.from_tensors({"weight": torch.tensor([[1.0, 0.0]])}, name="up")
        >>> monitor = Monitor([up], reference=start)
        >>> guard = Guard(monitor, {"directions": ["up"], "witness": "none", "mode": "update"})
        >>> guard.begin(model)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(torch.tensor([[3.0, 4.0]]))
        >>> guard.after_step()
        >>> reading = monitor.measure(model, step=1)
        >>> round(abs(reading["up"].dose), 6), round(reading.update_norm, 6), round(guard.account().dose["up"], 6)
        (0.0, 4.0, 3.0)
    """

    def __init__(self, monitor: Monitor, settings: GuardSettings | Mapping[str, Any]) -> None:
        self.settings = (
            settings if isinstance(settings, GuardSettings) else Document(GuardSettings, settings, "guard").validate()
        )
        self.armed = self.settings.when == "always"
        self._monitor = monitor
        self._names = [direction.name for direction in require(monitor.directions, self.settings)]
        self._multiples: Multiples | None = None
        self._subspace: Subspace | None = None
        self._addition: Addition | None = None
        self._momentum = Momentum(None)
        self._sparse: list[Trained] = []
        self._model: nn.Module | None = None
        self._optimizer: Any = None
        self._snapshot: Snapshot | None = None
        self._scaled = False
        self._steps, self._size = 0, 0.0
        self._along = torch.zeros(len(self._names), dtype=torch.float64, device="cpu")

    @property
    def directions(self) -> list[Direction]:
        """The guarded directions, as the monitor counts them."""
        return [direction for direction in self._monitor.directions if direction.name in self._names]

    def begin(
        self,
        model: nn.Module,
        optimizer: Any = None,
        view: ModelView | None = None,
        *,
        scaled: bool | None = None,
    ) -> None:
        """Make sure that the directions can be kept out of what a model trains, and begin with it.

        Args:
            model: The model, as the monitor measures it.
            optimizer: Its optimizer, whose momentum is taken back with the weights. Default: momentum is left alone.
            view: A view of the model now. Default: a new one.
            scaled: Whether the gradients are those of a scaler for fp16, which skips the steps that overflow. Default:
                whether the optimizer has one, as Accelerate's do.

        Raises:
            WeightWatchError: The mode can't be exact for what is trained, or the optimizer rules it out; or next to
                nothing of a direction lies in what is trained.
        """
        self.release()
        view = view or self._monitor.view(model)
        if self._monitor.reference.sampled is None or not self._monitor.knows(model):
            self._monitor.validate(view)
        mode = self.settings.mode
        require_optimizer(mode, optimizer)
        require_whole(mode, view)
        self._model, self._optimizer = model, optimizer
        self._scaled = getattr(optimizer, "scaler", None) is not None if scaled is None else scaled
        chosen = chosen_weights(view, self.directions, self.settings.layers)
        if mode == "preventative":
            self._addition = Addition(model, self.directions, self.settings.coefficient, chosen)
            if self.armed:
                self._addition.hook()
            return
        self._momentum = momentum = Momentum(getattr(optimizer, "optimizer", optimizer))
        ranks = view.ranks if view.sharded else ALONE  # replicas are guarded each by itself, and stay equal
        with exact():
            reshard_all(model)
            _ = view.values  # puts sharded adapters together, which must not happen in `agreed`

            def find() -> tuple[list[Direct | Adapted], list[Part]]:
                corrected, reference = mode != "gradient", self._monitor.reference
                found = guarded(view, reference, self.directions, chosen, corrected=corrected, main=ranks.main)
                require_reach(found, self.directions)
                return found, parts(found) if mode != "subspace" else []

            weights, levers = ranks.agreed(find)
            moved = [weight for weight in weights if mode != "subspace" or isinstance(weight, Adapted)]
            self._sparse = [trained for weight in moved for trained in weight.sparse]
            if mode == "subspace":
                found = sides(weights, self.settings.rank, self.settings.sides)
                self._subspace = Subspace(found, self.settings.strength, momentum)
            else:
                self._multiples = Multiples(levers, self.directions, self.settings, momentum, ranks)
        self._snapshot = Snapshot(view)

    def arm(self) -> None:
        """Switch the guard on."""
        self.armed = True
        if self._addition is not None:
            self._addition.hook()

    def before_step(self) -> None:
        """Take the directions out of the gradients, with ``mode: gradient``.

        Raises:
            WeightWatchError: A gradient is NaN or infinite along a direction; or see ``begin``, where other weights
                are trained than in the step before.
        """
        if self.armed and self.settings.mode == "gradient" and self._multiples is not None:
            self._renew()
            with exact():
                self._count(self._multiples.turn_gradients(scaled=self._scaled))

    def after_step(self) -> None:
        """Take back what the step has moved along the directions, with ``mode: update`` and ``mode: subspace``.

        Raises:
            WeightWatchError: The weights are NaN or infinite; nothing was added, with ``mode: preventative``; or see
                ``begin``, where other weights are trained than in the step before.
        """
        if not self.armed or self.settings.mode == "gradient":
            return
        if self._addition is not None:
            self._addition.require_used()
        self._renew()
        with exact(), self._momentum.as_steps(self._sparse):
            if self.settings.mode == "update" and self._multiples is not None:
                self._count(self._multiples.take_back(moments=True))
            elif self._subspace is not None:
                self._count(Taken(None, self._subspace.clear()))
            else:
                self._steps += 1

    def end(self) -> None:
        """Stop. With ``mode: checkpoint``, the update is taken off the directions now."""
        if (
            self.armed
            and self.settings.mode == "checkpoint"
            and self._multiples is not None
            and self._model is not None
        ):
            reshard_all(self._model)
            self._renew()
            with exact():
                self._note(self._multiples.take_back(moments=False))
            told = ", ".join(f"{dose:.4g} of {name}" for name, dose in self._doses().items())
            _logger.info("weightwatch: the guard took back %s at the end of the training.", told)
        self.release()

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Add k·w to the forward passes in here, and to none after it, with ``mode: preventative``.

        Whatever ends a step, nothing stays. Without this, k·w is added from ``begin`` to ``end``.
        """
        addition = self._addition
        if addition is not None:
            addition.on = True
        try:
            yield
        finally:
            if addition is not None:
                addition.on = False

    def pause(self) -> None:
        """Add k·w to no forward pass but those in ``adding``, with ``mode: preventative``."""
        if self._addition is not None:
            self._addition.on = False

    def release(self) -> None:
        """Leave the model as it is, and let go of it."""
        if self._addition is not None:
            self._addition.release()
        self._addition, self._multiples, self._subspace = None, None, None
        self._model, self._optimizer, self._snapshot = None, None, None
        self._momentum, self._sparse = Momentum(None), []

    def account(self, update_norm: float = 0.0) -> Guarded:
        """Return what was done since the last call.

        Args:
            update_norm: ‖τ‖ now.
        """
        whole = float(self._steps) if self.settings.mode == "gradient" else update_norm
        found = Guarded(self._steps, self._doses(), self._size / whole if whole > 0 else 0.0)
        self._steps, self._size = 0, 0.0
        self._along = torch.zeros_like(self._along)
        return found

    def _renew(self) -> None:
        """Begin again if layers were unfrozen, or adapters switched or scaled: the guard holds for what is trained."""
        if self._model is not None and self._snapshot is not None and self._snapshot.changed():
            self.begin(self._model, self._optimizer, scaled=self._scaled)

    def _count(self, taken: Taken | None) -> None:
        """Count a guarded step; None is one that the scaler of fp16 skips."""
        if taken is not None:
            self._note(taken)
            self._steps += 1

    def _note(self, taken: Taken) -> None:
        self._size += taken.size
        if taken.along is not None:
            self._along = self._along + taken.along

    def _doses(self) -> dict[str, float]:
        if self.settings.mode not in ("update", "checkpoint"):
            return {}  # others take no multiples of the directions out of the weights
        sizes = [sum(direction.squares.values()) for direction in self.directions]
        return {name: float(t) / size for name, t, size in zip(self._names, self._along, sizes, strict=True)}
