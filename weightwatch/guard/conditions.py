"""What must hold before a guard begins."""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from weightwatch.config import GuardSettings
from weightwatch.reading.grouping import group
from weightwatch.update.model_view import ModelView
from weightwatch.vectors.arithmetic import cosine
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import canonical

_logger = logging.getLogger("weightwatch")

_LITTLE = 0.01
"""Share of ‖w‖² that may lie in weights that can't be guarded, as long as a warning names them."""
NOT_FINITE = (
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


def require_optimizer(mode: str, optimizer: Any) -> None:
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


def require_whole(mode: str, view: ModelView) -> None:
    """Refuse a sharded model with a mode that needs whole tensors."""
    if view.sharded and mode in ("gradient", "subspace"):
        needed = "whole gradients" if mode == "gradient" else "the outputs of whole weights"
        raise WeightWatchError(
            f"The model is sharded over processes, where `mode: {mode}` would need {needed}. Use `mode: update`, which "
            "needs only sums, or train with DDP."
        )


def chosen_weights(view: ModelView, directions: Sequence[Direction], layers: Sequence[Any]) -> Callable[[str], bool]:
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


def require_most(left_out: Mapping[str, str], directions: Sequence[Direction], chosen: Callable[[str], bool]) -> None:
    """Warn of weights that can't be guarded because their update is not known.

    Args:
        left_out: The weights that a reading leaves out, each with the reason.
        directions: The directions to keep out.
        chosen: Whether a weight is to be guarded, by its name.

    Raises:
        WeightWatchError: More than a small part of a direction lies in them.
    """
    out = [name for name in left_out if chosen(name) and any(name in direction.squares for direction in directions)]
    for direction in directions:
        squares = {name: direction.squares.get(name, 0.0) for name in out}
        share = sum(squares.values()) / sum(direction.squares.values())
        if share > _LITTLE:
            most = max(squares, key=lambda name: squares[name])
            others = f" and {len(out) - 1} others" if len(out) > 1 else ""
            raise WeightWatchError(
                f"{100 * share:.3g} % of ‖w‖² of direction {direction.name!r} can't be kept out of the update: {most}"
                f"{others} would train unguarded ({left_out[most]}). Freeze what is named, choose the layers to guard "
                "with `layers:`, or begin a new run."
            )
    for name in out:
        _logger.warning("weightwatch: %s is left out by the guard: %s.", name, left_out[name])


def _same(one: Direction, other: Direction) -> bool:
    """Whether one direction is a multiple of another, within a thousandth of its norm."""
    if one.squares.keys() != other.squares.keys():
        return False
    ratio = sum(one.squares.values()) / sum(other.squares.values())
    alike = all(abs(one.squares[n] - ratio * other.squares[n]) <= 1e-3 * one.squares[n] for n in one.squares)
    return alike and abs(cosine(one, other)) > 0.999
