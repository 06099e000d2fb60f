"""A guard: keeps directions out of the update while training goes on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from weightwatch.config import GuardSettings
from weightwatch.guard.find import guarded, outputs, parts
from weightwatch.guard.outputs import Outputs
from weightwatch.guard.parts import Lever, Part, Trained
from weightwatch.guard.preventative import add_while_training
from weightwatch.guard.projection import coefficients
from weightwatch.monitor import Monitor
from weightwatch.reading.grouping import group
from weightwatch.reading.reading import Guarded
from weightwatch.update.model_view import ModelView
from weightwatch.vectors.arithmetic import cosine
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.document import Document
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.precision import exact
from weightwatch.vectors.weights.names import canonical

_logger = logging.getLogger("weightwatch")

_NOTHING = 0.01
"""Reach below which there is nothing of a direction in what is trained that a guard could take back."""
_MOMENTS = ("exp_avg", "momentum_buffer")


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
        >>> guard = Guard(monitor, {"directions": ["up"], "witness": "none"})
        >>> guard.begin(model)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(torch.tensor([[3.0, 4.0]]))
        >>> guard.after_step()
        >>> reading = monitor.measure(model, step=1)
        >>> round(abs(reading["up"].dose), 6), round(reading.update_norm, 6), round(guard.account().dose["up"], 6)
        (0.0, 4.0, 3.0)
    """

    def __init__(self, monitor: Monitor, settings: GuardSettings | Mapping[str, Any]) -> None:
        self.settings = settings if isinstance(settings, GuardSettings) else _validated(settings)
        self.armed = self.settings.when == "always"
        self._monitor = monitor
        self._names = [direction.name for direction in require(monitor.directions, self.settings)]
        self._parts: list[Part] = []
        self._outputs: list[Outputs] = []
        self._hooks: list[RemovableHandle] = []
        self._model: nn.Module | None = None
        self._optimizer: Any = None
        self._high = self._low = torch.empty(0, dtype=torch.float64, device="cpu")
        self._scaled = False
        self._steps, self._path = 0, 0.0
        self._taken = torch.zeros(len(self._names), dtype=torch.float64, device="cpu")

    @property
    def directions(self) -> list[Direction]:
        """The guarded directions, as the monitor counts them."""
        return [direction for direction in self._monitor.directions if direction.name in self._names]

    def begin(self, model: nn.Module, optimizer: Any = None, view: ModelView | None = None) -> None:
        """Make sure that the directions can be kept out of what a model trains, and begin with it.

        Args:
            model: The model, as the monitor measures it.
            optimizer: Its optimizer, whose momentum is taken back with the weights. Default: momentum is left alone.
            view: A view of the model now. Default: a new one.

        Raises:
            WeightWatchError: The mode can't be exact for what is trained, or the optimizer rules it out; or next to
                nothing of a direction lies in what is trained.
        """
        self.release()
        view = view or self._monitor.view(model)
        if self._monitor.reference.sampled is None or not self._monitor.knows(model):
            self._monitor.validate(view)
        mode = self.settings.mode
        _require_optimizer(mode, optimizer)
        self._model, self._optimizer = model, getattr(optimizer, "optimizer", optimizer)
        self._scaled = getattr(optimizer, "scaler", None) is not None
        chosen = _chosen(view, self.directions, self.settings.layers)
        if mode == "preventative":
            for handle in add_while_training(model, self.directions, self.settings.coefficient, chosen):
                handle.remove()  # this was a trial; they come with the first step that is guarded
            self._switch()
            return
        with exact():
            corrected = mode != "gradient"
            weights = guarded(view, self._monitor.reference, self.directions, chosen, corrected=corrected)
            self._parts = parts(weights)
            if mode == "subspace":
                self._outputs = outputs(weights, self.settings.rank)
            self._require_reach()
        self._high = self.settings.budget * self._squares()
        self._low = -self._high if self.settings.both_ways else torch.full_like(self._high, -torch.inf)

    def arm(self) -> None:
        """Switch the guard on."""
        self.armed = True
        self._switch()

    def before_step(self) -> None:
        """Take the directions out of the gradients, with ``mode: gradient``.

        Raises:
            WeightWatchError: A gradient is NaN or infinite along a direction.
        """
        if not self.armed or self.settings.mode != "gradient":
            return
        with exact():
            levers = [(part, lever) for part in self._parts for lever in (part.lever(), *part.others())]
            if self._scaled and not _finite_gradients([each for _, lever in levers for each in lever.trained]):
                return  # of fp16: the scaler skips the step
            self._turn(levers, lambda trained: trained.parameter.grad, record=True)
            self._steps += 1

    def after_step(self) -> None:
        """Take back what the step has moved along the directions, with ``mode: update`` and ``mode: subspace``.

        Raises:
            WeightWatchError: The weights are NaN or infinite.
        """
        if not self.armed:
            return
        if self.settings.mode == "update":
            with exact():
                self._take_back(moments=True)
        elif self.settings.mode == "subspace":
            with exact():
                self._clear_outputs()
        if self.settings.mode != "gradient":
            self._steps += 1

    def end(self) -> None:
        """Stop. With ``mode: checkpoint``, the update is taken off the directions now."""
        if self.armed and self.settings.mode == "checkpoint" and self._parts:
            with exact():
                self._take_back(moments=False)
            told = ", ".join(f"{dose:.4g} of {name}" for name, dose in self._doses().items())
            _logger.info("weightwatch: the guard took back %s at the end of the training.", told)
        self.release()

    def release(self) -> None:
        """Leave the model as it is, and let go of it."""
        for handle in self._hooks:
            handle.remove()
        self._hooks, self._parts, self._outputs, self._optimizer, self._model = [], [], [], None, None

    def account(self, update_norm: float = 0.0) -> Guarded:
        """Return what was done since the last call.

        Args:
            update_norm: ‖τ‖ now.
        """
        share = self._path / update_norm if update_norm > 0 else 0.0
        found = Guarded(self._steps, self._doses(), share)
        self._clear()
        return found

    # What is taken back

    def _take_back(self, *, moments: bool) -> None:
        levers, inner, gram = self._movement()
        c = self._coefficients(inner, gram, self._high, self._low) * self.settings.strength
        self._record(c, gram)
        moved, touched = [], set()
        for (part, lever), mine in zip(levers, c.split([len(part.names) for part in self._parts]), strict=True):
            if bool(mine.any()):
                lever.subtract([each.values for each in lever.trained], self._of(part, mine))
                moved.append((part, lever))
                rows = mine.any(1).tolist()
                touched |= {id(each.parameter) for each, yes in zip(lever.trained, rows, strict=True) if yes}
        if moments and moved:
            self._turn(moved, lambda one: self._moment(one) if id(one.parameter) in touched else None, record=False)

    def _clear_outputs(self) -> None:
        strength = self.settings.strength
        seen = [one.movement() for one in self._outputs]
        sizes = torch.stack([each.norm().cpu() for each in seen])  # read together, so that no device waits in between
        if not bool(sizes.isfinite().all()):
            raise WeightWatchError(_NOT_FINITE)
        self._path += strength * float(sizes.norm())
        for one, each in zip(self._outputs, seen, strict=True):
            one.subtract([trained.values for trained in one.trained], strength * each)
            moments = self._oriented(one.trained, self._moment)
            if moments:
                one.subtract(moments, strength * one.along(moments))

    def _turn(
        self, levers: Sequence[tuple[Part, Lever]], of: Callable[[Trained], Tensor | None], *, record: bool
    ) -> None:
        """Take out of gradients or moments what would move the weights towards the directions.

        The weights move against them, so the part to take out has a negative inner product with a direction.
        """
        found = [(part, lever, self._oriented(lever.trained, of)) for part, lever in levers]
        found = [(part, lever, tensors) for part, lever, tensors in found if tensors]
        if not found:
            return
        inner, gram = self._sums(found)
        zero = torch.zeros_like(inner)
        low = zero if self.settings.both_ways else torch.full_like(zero, -torch.inf)
        c = self._coefficients(-inner, gram, zero, low) * self.settings.strength
        if record:
            self._record(c, gram)
        for (part, lever, tensors), mine in zip(found, c.split([len(part.names) for part, *_ in found]), strict=True):
            if bool(mine.any()):
                lever.subtract(tensors, -self._of(part, mine))

    @staticmethod
    def _oriented(trained: Sequence[Trained], of: Callable[[Trained], Tensor | None]) -> list[Tensor]:
        """Return a tensor of each parameter in the orientation of the factor; none at all if no parameter has one.

        What has no gradient, or no moment, does not move.
        """
        found = [of(each) for each in trained]
        if all(tensor is None for tensor in found):
            return []
        return [
            each.oriented(torch.zeros_like(each.parameter) if tensor is None else tensor)
            for each, tensor in zip(trained, found, strict=True)
        ]

    def _sums(self, levers: Sequence[tuple[Part, Lever, Sequence[Tensor]]]) -> tuple[Tensor, Tensor]:
        """Return the inner products of all changes with all K directions, shapes (T, K) and (T, K, K), on the CPU."""
        count = len(self._names)
        total = sum(len(part.names) for part, *_ in levers)
        inner = torch.zeros(total, count, dtype=torch.float64, device="cpu")
        gram = torch.zeros(total, count, count, dtype=torch.float64, device="cpu")
        measured = [(part, lever.sums(tensors)) for part, lever, tensors in levers]
        first = 0
        for part, (along, between) in measured:  # read at the end, so that no device waits in between
            rows = slice(first, first + len(part.names))
            where = torch.tensor(part.where, dtype=torch.long, device="cpu")
            inner[rows, where] = part.scale * along.cpu()
            gram[rows, where[:, None], where] = between.cpu()
            first += len(part.names)
        return inner, gram

    def _movement(self) -> tuple[list[tuple[Part, Lever]], Tensor, Tensor]:
        """Return the levers now, how far the weights have moved along the directions, and ⟨p_k,p_l⟩."""
        levers = [(part, part.lever()) for part in self._parts]
        inner, gram = self._sums([(part, lever, [each.values for each in lever.trained]) for part, lever in levers])
        first = 0
        for part in self._parts:
            inner[first : first + len(part.names), torch.tensor(part.where, dtype=torch.long, device="cpu")] -= (
                part.started
            )
            first += len(part.names)
        return levers, inner, gram

    def _coefficients(self, inner: Tensor, gram: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """Return the multiples of the directions to take back from each weight, shape (T, K)."""
        if self.settings.per == "model":
            whole = coefficients(*(each.sum(0, keepdim=True) for each in (inner, gram, high, low)))
            found = whole.expand_as(inner)
        else:
            found = coefficients(inner, gram, high, low)
        if not bool(found.isfinite().all()):
            raise WeightWatchError(_NOT_FINITE)
        return found

    def _of(self, part: Part, c: Tensor) -> Tensor:
        """Return the multiples in units of a part's free tensors, of the directions that it has."""
        return c[:, list(part.where)] / part.scale

    def _moment(self, trained: Trained) -> Tensor | None:
        """Return the first moment that the optimizer keeps of a parameter; None if none can be changed."""
        if self._optimizer is None:
            return None
        state = self._optimizer.state.get(trained.parameter, {})
        moment = next((state[key] for key in _MOMENTS if state.get(key) is not None), None)
        usable = isinstance(moment, Tensor) and moment.shape == trained.parameter.shape and moment.is_floating_point()
        return moment if usable else None

    # The account

    def _record(self, c: Tensor, gram: Tensor) -> None:
        back = (gram @ c[:, :, None])[:, :, 0]
        self._taken = self._taken + back.sum(0)
        self._path += float((c * back).sum().clamp(min=0).sqrt())

    def _doses(self) -> dict[str, float]:
        if self.settings.mode in ("subspace", "preventative"):
            return {}  # they take back no multiples of the directions
        sizes = [sum(direction.squares.values()) for direction in self.directions]
        return {name: float(t) / size for name, t, size in zip(self._names, self._taken, sizes, strict=True)}

    def _clear(self) -> None:
        self._steps, self._path = 0, 0.0
        self._taken = torch.zeros(len(self._names), dtype=torch.float64, device="cpu")

    # The beginning

    def _switch(self) -> None:
        if self.armed and self.settings.mode == "preventative" and self._model is not None and not self._hooks:
            chosen = _chosen(ModelView(self._model), self.directions, self.settings.layers)
            self._hooks = add_while_training(self._model, self.directions, self.settings.coefficient, chosen)
            torch.compiler.reset()  # a model that is compiled already would run without what was just added

    def _squares(self) -> Tensor:
        """Return ‖w‖² of each guarded weight and direction, shape (T, K)."""
        names = [name for part in self._parts for name in part.names]
        found = [[direction.squares.get(name, 0.0) for direction in self.directions] for name in names]
        return torch.tensor(found, dtype=torch.float64, device="cpu").reshape(len(names), len(self._names))

    def _require_reach(self) -> None:
        """Refuse a direction of which next to nothing lies in what is trained."""
        _, _, gram = self._movement()
        within = gram.diagonal(dim1=1, dim2=2).sum(0)
        for direction, square in zip(self.directions, within.tolist(), strict=True):
            reach = (square / sum(direction.squares.values())) ** 0.5
            if not reach >= _NOTHING:
                raise WeightWatchError(
                    f"Direction {direction.name!r} has a reach of {reach:.2g} in the guarded weights, so there is "
                    "nothing to keep out. Guard the layers it was built on, or train with a larger rank."
                )


_NOT_FINITE = (
    "The guard found NaN or infinite values in the guarded weights or gradients, and changed nothing. Lower the "
    "learning rate, or go back to an earlier checkpoint."
)


def require(directions: Sequence[Direction], settings: GuardSettings) -> list[Direction]:
    """Return the directions that are to be guarded, among those that are watched.

    Raises:
        WeightWatchError: One of them is not watched, or is a control; or the witness is not watched, is a control, or
            is not a second direction.
    """
    watched = {direction.name: direction for direction in directions}
    witness = settings.witnessed
    names = settings.directions or [
        direction.name for direction in directions if direction.card.kind == "behaviour" and direction.name != witness
    ]
    for name in [*names, *([witness] if witness is not None else [])]:
        if name not in watched:
            raise WeightWatchError(
                f"guard: {name!r} is not watched. Watched directions: {', '.join(watched)}. Add it under `directions:`."
            )
        if watched[name].card.kind == "control":
            raise WeightWatchError(
                f"guard: {name!r} is a control, which is harmless by definition. Guard a behaviour, with a behaviour "
                "as the witness."
            )
    if not names:
        raise WeightWatchError("guard: the witness is the only behaviour that is watched. Watch the one to guard, too.")
    if witness is not None:
        for name in names:
            if _same(watched[name], watched[witness]):
                raise WeightWatchError(
                    f"guard: the witness {witness!r} has the same weights as {name!r}, which is guarded. Build another "
                    "one, from other data and another seed."
                )
    return [watched[name] for name in watched if name in names]


def _same(one: Direction, other: Direction) -> bool:
    """Whether one direction is a multiple of another, within a thousandth of its norm."""
    if one.squares.keys() != other.squares.keys():
        return False
    ratio = sum(one.squares.values()) / sum(other.squares.values())
    alike = all(abs(one.squares[n] - ratio * other.squares[n]) <= 1e-3 * one.squares[n] for n in one.squares)
    return alike and abs(cosine(one, other)) > 0.999


def _finite_gradients(trained: Sequence[Trained]) -> bool:
    gradients = [each.parameter.grad for each in trained if each.parameter.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _validated(settings: Mapping[str, Any]) -> GuardSettings:
    return Document(GuardSettings, settings, "guard").validate()


def _require_optimizer(mode: str, optimizer: Any) -> None:
    """Refuse an optimizer with which a mode can't be exact."""
    inner = getattr(optimizer, "optimizer", optimizer)
    kind, kinds = type(inner).__name__, f"{type(optimizer).__name__} {type(inner).__name__}"
    if mode != "preventative" and any("train_mode" in group for group in getattr(inner, "param_groups", ())):
        raise WeightWatchError(
            f"{kind} trains other weights than those it evaluates with (schedule-free), so what the guard takes back "
            "returns. Use an optimizer with a schedule, or `mode: preventative`."
        )
    if mode == "gradient" and ("LayerWise" in kinds or "DeepSpeed" in kinds):
        raise WeightWatchError(
            f"{kind} steps during the backward pass, before `mode: gradient` could change the gradients. Use `mode: "
            "update`."
        )


def _chosen(view: ModelView, directions: Sequence[Direction], layers: Sequence[Any]) -> Callable[[str], bool]:
    """Return a function that tells whether a weight is to be guarded.

    Raises:
        WeightWatchError: The directions have no such layer.
    """
    if not layers:
        return lambda name: True
    sizes = {canonical(name): prod(local.shape) for name, local in view.parameters.items()}
    found = group(sizes).layers
    have = {found.get(name) for direction in directions for name in direction.deltas} - {None}
    missing = next((layer for layer in layers if layer not in have), None)
    if missing is not None:
        raise WeightWatchError(
            f"guard: the directions have no layer {missing}; they have {', '.join(sorted(map(str, have)))}."
        )
    return lambda name: found.get(name) in layers
