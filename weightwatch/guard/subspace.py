"""The outputs that directions write to and the inputs that they read from, kept free of the update.

With orthonormal U of shape (out, k) and V of shape (in, k), ``τ ← (I − U Uᵀ) τ (I − V Vᵀ)``. Under LoRA τ = s B A, so
``B ← B − U Uᵀ B`` and ``A ← A − A V Vᵀ`` are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightwatch.guard.conditions import NOT_FINITE
from weightwatch.guard.momentum import Momentum, oriented
from weightwatch.guard.trained import Trained
from weightwatch.vectors.errors import WeightWatchError


@dataclass(frozen=True)
class Side:
    """The outputs or the inputs of n weights of one shape, which are the rows of trained tensors as they are oriented.

    Attributes:
        names: Names of the weights in the plain model.
        trained: The weights themselves, or the factors B or A of their adapters.
        basis: U or V of each, shape (n, rows, k).
        start: What the basis sees of θ₀, shape (n, k, columns); None for factors.
        others: The factors on the other side; None for weights themselves.
        scale: s of each adapter; None for weights themselves.
        second: Whether the other side of the same tensors is cleared first.
    """

    names: Sequence[str]
    trained: Sequence[Trained]
    basis: Tensor
    start: Tensor | None = None
    others: Sequence[Trained] | None = None
    scale: Tensor | None = None
    second: bool = False

    def movement(self) -> Tensor:
        """Return Uᵀ τ, shape (n, k, in), or Vᵀ τᵀ; under LoRA Uᵀ B or Vᵀ Aᵀ."""
        seen = self.along([each.values for each in self.trained])
        return seen if self.start is None else seen - self.start

    def along(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return Uᵀ or Vᵀ times some changes of the tensors, such as gradients, shape (n, k, columns)."""
        return self.basis.mT @ _stacked(tensors)

    def subtract(self, tensors: Sequence[Tensor], seen: Tensor) -> None:
        """Subtract U or V times ``seen`` from some tensors, in place."""
        parts = (self.basis @ seen).unbind()
        torch._foreach_sub_(
            [_rows(tensor) for tensor in tensors],
            [part.to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)],
        )

    def square(self, seen: Tensor) -> Tensor:
        """Return the squared norm of the movement in the weights themselves: ‖s (Uᵀ B) A‖² under LoRA."""
        if self.others is None or self.scale is None:
            return seen.square().sum()
        others = _stacked([each.values for each in self.others])
        return (self.scale[:, None, None] ** 2 * (seen @ (others.mT @ others)) * seen).sum()


class Subspace:
    """Keeps sides of weights as they were.

    Args:
        sides: The sides.
        strength: Share of their movement that is taken back at a time.
        momentum: Finds the moments to change with the weights.
    """

    def __init__(self, sides: Sequence[Side], strength: float, momentum: Momentum) -> None:
        self._sides, self._strength, self._momentum = sides, strength, momentum

    def clear(self) -> float:
        """Take back what the sides have moved, and return the norm of that.

        What moves both an output and an input that are kept counts twice.

        Raises:
            WeightWatchError: A weight is NaN or infinite. Nothing was changed.
        """
        seen = [side.movement() for side in self._sides]
        squares = torch.stack([side.square(each).cpu() for side, each in zip(self._sides, seen, strict=True)])
        if not bool(squares.isfinite().all()):  # read together, so that no device waits in between
            raise WeightWatchError(NOT_FINITE)
        for side, each in zip(self._sides, seen, strict=True):
            found = side.movement() if side.second else each
            side.subtract([trained.values for trained in side.trained], self._strength * found)
            moments = oriented(side.trained, self._momentum.of)
            if moments:
                side.subtract(moments, self._strength * side.along(moments))
        return self._strength * float(squares.sum().clamp(min=0).sqrt())


def _rows(tensor: Tensor) -> Tensor:
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    rows = [_rows(tensor).float() for tensor in tensors]
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]
