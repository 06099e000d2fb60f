"""The first moments that an optimizer keeps: what the next steps carry on from the steps before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weightwatch.guard.trained import Trained, local, placed_like

_KEYS = ("exp_avg", "momentum_buffer")
_EXPONENT = 0x7F800000
"""The bits of a number in fp32 that are its exponent."""


class Momentum:
    """Finds the first moments of trained tensors.

    Args:
        optimizer: The optimizer; None if momentum is to be left alone.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        groups = [group for group in getattr(optimizer, "param_groups", []) if {"betas", "eps"} <= group.keys()]
        self._groups = {parameter: group for group in groups for parameter in group["params"]}

    def of(self, trained: Trained) -> Tensor | None:
        """Return the first moment of a parameter; None if there is none that can be changed."""
        if self._optimizer is None:
            return None
        state = self._optimizer.state.get(trained.parameter, {})
        key = next((key for key in _KEYS if state.get(key) is not None), None)
        moment = None if key is None else state[key]
        if not isinstance(moment, Tensor) or moment.shape != trained.parameter.shape or not moment.is_floating_point():
            return None
        if (placed := placed_like(moment, trained.parameter)) is not moment:
            moment = state[key] = placed
        return moment if trained.shards is None or trained.shards.fit(local(moment)) else None

    @contextmanager
    def as_steps(self, several: Iterable[Trained]) -> Iterator[None]:
        """Have the first moments of Adam in units of the steps that they lead to, for the duration of a block.

        Adam divides by the root of the second moment. A direction also has elements whose gradients are tiny or zero,
        such as the rows of tokens that the data lack. What is taken out of their first moments as they are would become
        steps of any length. Units are powers of two, so that moments from which nothing is taken stay the same bits.
        """
        moments = {
            trained.parameter: local(moment)
            for trained in several
            if (moment := self.of(trained)) is not None and self._is_adam(trained.parameter)
        }
        for parameter, moment in moments.items():
            moment.div_(self._unit(parameter))
        try:
            yield
        finally:
            for parameter, moment in moments.items():  # computed again, since all units are as large as the model
                moment.mul_(self._unit(parameter))

    def _is_adam(self, parameter: nn.Parameter) -> bool:
        squares = self._optimizer.state[parameter].get("exp_avg_sq")
        shaped = isinstance(squares, Tensor) and squares.shape == parameter.shape and squares.dtype == torch.float32
        return shaped and parameter in self._groups

    def _unit(self, parameter: nn.Parameter) -> Tensor:
        """Return √v̂ + ε up to a constant, rounded down to powers of two."""
        group, state = self._groups[parameter], self._optimizer.state[parameter]
        epsilon = group["eps"] * (1 - group["betas"][1] ** state["step"]) ** 0.5
        unit = local(state["exp_avg_sq"]).sqrt().add_(epsilon).clamp_(min=1e-30)
        return unit.view(torch.int32).bitwise_and_(_EXPONENT).view(torch.float32)


def tensors_of(trained: Sequence[Trained], of: Callable[[Trained], Tensor | None]) -> list[Tensor]:
    """Return a tensor of each parameter as ``Trained.oriented`` does; none at all if no parameter has one.

    What has no gradient, or no moment, does not move.
    """
    found = [of(each) for each in trained]
    if all(tensor is None for tensor in found):
        return []
    return [
        each.oriented(torch.zeros_like(each.parameter) if tensor is None else tensor)
        for each, tensor in zip(trained, found, strict=True)
    ]
