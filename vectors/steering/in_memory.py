"""Adding a multiple of a direction to the weights of a model in memory, θ₀ + k·w: permanently or inside a block.

Source: Fierro & Roger, *Steering Language Models with Weight Arithmetic*, arXiv 2511.05408, section 2.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import TypeVar

import torch
from torch import Tensor, nn

from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.precision import exact
from weightwatch.vectors.weights.names import canonical
from weightwatch.vectors.weights.reader import Box, boxes

Model = TypeVar("Model", bound=nn.Module)

AT_ONCE = 1 << 22
"""Elements of a weight in one sum."""

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def steered(model: Model, direction: Direction, k: float = 1.0) -> Iterator[Model]:
    """Add k·w to a model's weights inside a ``with`` block.

    After the block, and after an error in it, the changed weights are restored bit by bit from copies on their devices.

    Args:
        model: Any module whose parameters have the names of the direction. In a PEFT model, the weights beneath the
            adapters change, and so do full copies of modules (``modules_to_save``).
        direction: w.
        k: Its coefficient; negative values steer away from the behaviour.

    Yields:
        The model.

    Raises:
        WeightWatchError: See ``steer``. The model is unchanged then.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> with steered(model, Direction.from_tensors({"weight": torch.ones(1, 2)}, name="up"), 0.5):
        ...     inside = model.weight.detach().clone()
        >>> (inside - model.weight).tolist()
        [[0.5, 0.5]]
    """
    targets = _targets(model, direction, k)
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for parameter, name in targets:
            kept.append((parameter, parameter.detach().clone()))
            _add(parameter, direction, name, k)
        yield model
    finally:
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)


def steer(model: nn.Module, direction: Direction, k: float = 1.0) -> None:
    """Add k·w to a model's weights, in place.

    Sums are computed in fp32 and rounded once to the weight's precision. A tied weight is changed once.

    Args:
        model: See ``steered``.
        direction: w.
        k: Its coefficient.

    Raises:
        WeightWatchError: The model lacks a parameter of the direction, or has it in another shape, quantised or
            sharded; the direction changes tied weights differently; or a sum is too large for the weight's precision.
            The model is unchanged then.
    """
    for parameter, name in _targets(model, direction, k):
        _add(parameter, direction, name, k)


def summed(values: Tensor, change: Tensor, k: float) -> Tensor:
    """Return values + k·change, in fp32 at least and rounded once to the precision of the values."""
    wide = torch.promote_types(values.dtype, torch.float32)
    return torch.add(values.to(wide), change.to(values.device, wide), alpha=k).to(values.dtype)


def require_finite(k: float, direction: Direction) -> None:
    """Make sure that a coefficient is finite.

    Raises:
        WeightWatchError: It is infinite or NaN.
    """
    if not isfinite(k):
        raise WeightWatchError(f"The coefficient of direction {direction.name!r} is {k}; give a finite number.")


def _targets(model: nn.Module, direction: Direction, k: float) -> list[tuple[Tensor, str]]:
    """Return the parameters that a direction changes, each once, with its name in the direction."""
    require_finite(k, direction)
    named: dict[str, dict[int, Tensor]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        named.setdefault(canonical(name), {})[id(one)] = one
    found: dict[int, tuple[Tensor, str]] = {}
    for name in direction.deltas:
        for parameter in _suited(named, direction, name):
            taken = found.setdefault(id(parameter), (parameter, name))[1]
            if taken != name and not direction.changes_alike(taken, name):
                raise WeightWatchError(
                    f"{name} and {taken} are one tied weight of the model, but direction {direction.name!r} changes "
                    "them differently. Untie them, or use a direction of a tied model."
                )
    for parameter, name in found.values():
        _require_room(parameter, direction, name, k)
    return list(found.values())


def _suited(named: Mapping[str, Mapping[int, Tensor]], direction: Direction, name: str) -> list[Tensor]:
    """Return the parameters of a name: several if PEFT has copies of the module."""
    parameters = list(named.get(name, {}).values())
    if not parameters:
        raise WeightWatchError(
            f"The model has no parameter {name}, which direction {direction.name!r} changes. Use a direction that was "
            "built from this model."
        )
    rows = f"{name.removesuffix('.weight')}.trainable_tokens_delta."
    if any(other.startswith(rows) for other in named):
        raise WeightWatchError(
            f"{name} can't be steered by direction {direction.name!r}: an adapter of trained tokens replaces some of "
            "its rows. Merge the adapter first."
        )
    for parameter in parameters:
        obstacle = _obstacle(parameter, direction.shape(name))
        if obstacle is not None:
            raise WeightWatchError(f"{name} can't be steered by direction {direction.name!r}: {obstacle}")
        direction.require_shape(name, tuple(parameter.shape), "the model")
    return parameters


def _obstacle(parameter: Tensor, shape: tuple[int, ...]) -> str | None:
    """Return why a direction can't be added to a parameter; None if it can."""
    if _is_dtensor(parameter) or (parameter.numel() == 0 and 0 not in shape):
        return "it is sharded over several processes. Steer the model before it is sharded, or steer its checkpoint."
    if parameter.is_meta:
        return "it has no values here (meta device, offloaded). Load the model as a whole, or steer its checkpoint."
    if parameter.dtype not in _FLOATS or type(parameter.data) is not Tensor:
        return (
            f"it is quantised or packed ({type(parameter).__name__} of {parameter.dtype}). Load the model without "
            "quantisation, steer it, and quantise the result; or load the direction as an adapter."
        )
    return None


def _is_dtensor(parameter: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


def _require_room(parameter: Tensor, direction: Direction, name: str, k: float) -> None:
    """Make sure that the sums are finite in fp16, whose largest number is 65504."""
    if parameter.dtype != torch.float16:
        return
    change = _parts(direction, name, parameter.device)
    with exact():
        for box in boxes(tuple(parameter.shape), AT_ONCE):
            if not bool(summed(parameter[box], change(box), k).isfinite().all()):
                raise WeightWatchError(
                    f"{k:g} times direction {direction.name!r} takes {name} beyond the range of fp16. Load the model "
                    "in bf16 or fp32, or take a smaller coefficient."
                )


def _add(parameter: Tensor, direction: Direction, name: str, k: float) -> None:
    change = _parts(direction, name, parameter.device)
    with exact():
        for box in boxes(tuple(parameter.shape), AT_ONCE):
            parameter[box] = summed(parameter[box], change(box), k)


def _parts(direction: Direction, name: str, device: torch.device) -> Callable[[Box], Tensor]:
    """Return a function that gives boxes of a direction's tensor; factors are multiplied out on a device."""
    if not direction.on_disk:
        change = direction.deltas[name]
        if isinstance(change, LowRank):
            return change.to(device).part
    return lambda box: direction.part(name, box)
