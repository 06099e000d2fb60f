"""The first moments that an optimizer keeps: what the next steps carry on from the steps before."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from weightwatch.guard.trained import Trained, local, placed_like

_KEYS = ("exp_avg", "momentum_buffer")


class Momentum:
    """Finds the first moments of trained tensors.

    Args:
        optimizer: The optimizer; None if momentum is to be left alone.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

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


def oriented(trained: Sequence[Trained], of: Callable[[Trained], Tensor | None]) -> list[Tensor]:
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
