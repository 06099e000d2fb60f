"""The outputs that directions write to and the inputs that they read from, kept free of the update.

With orthonormal U of shape (out, k) and V of shape (in, k), ``τ ← (I − U Uᵀ) τ (I − V Vᵀ)``. Under LoRA τ = s B A, so
``B ← B − U Uᵀ B`` and ``A ← A − A V Vᵀ`` are exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightwatch.guard.conditions import NOT_FINITE
from weightwatch.guard.find import TOGETHER
from weightwatch.guard.momentum import Momentum, tensors_of
from weightwatch.guard.projection import output_basis
from weightwatch.guard.trained import Trained
from weightwatch.guard.weight import Adapted, Direct, oriented
from weightwatch.update.sharding.local import whole
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
            # Of weights themselves, momentum along the sides is left alone: what it does is put back after each step.
            moments = tensors_of(side.trained, self._momentum.of) if side.others is not None else []
            if moments:
                side.subtract(moments, self._strength * side.along(moments))
        return self._strength * float(squares.sum().clamp(min=0).sqrt())


def sides(weights: Sequence[Direct | Adapted], rank: int, kept: str) -> list[Side]:
    """Return the outputs of the weights that the directions write to, and the inputs that they read from.

    Args:
        weights: The weights.
        rank: Largest number of outputs, and of inputs, of each weight.
        kept: ``outputs``, ``inputs`` or ``both``. A bias or the scale of a norm has outputs only.

    Raises:
        WeightWatchError: The outputs or inputs of a weight can't be told, or can't be changed alone.
    """
    turns = {"outputs": [False], "inputs": [True], "both": [False, True]}[kept]
    return [
        side
        for turned in turns
        for side in [
            *_adapted_sides([w for w in weights if isinstance(w, Adapted)], rank, turned),
            *(_direct_side(w, rank, turned, kept) for w in weights if isinstance(w, Direct) and _has(w, turned, kept)),
        ]
    ]


def _has(weight: Direct, turned: bool, kept: str) -> bool:
    """Whether a side of a weight is to be kept. A vector is kept once, whatever is asked for."""
    return len(weight.parameter.shape) > 1 or turned == (kept == "inputs")


def _direct_side(weight: Direct, rank: int, turned: bool, kept: str) -> Side:
    count = len(weight.parameter.shape)
    if count > 2:
        raise WeightWatchError(
            f"{weight.name} has {count} dimensions, so its outputs are not known. Use "
            "`mode: update`, or leave the layer out with `layers:`."
        )
    flipped = count > 1 and turned != weight.by_column
    trained = replace(weight.parameter, turned=flipped)
    device = weight.parameter.device
    basis = output_basis([oriented(w, flipped).to(device) for w in weight.directions.values()], rank)
    side = Side([weight.name], [trained], basis[None], second=kept == "both" and turned)
    return replace(side, start=side.along([trained.oriented(weight.start(whole(trained.shape))).to(device)]))


def _adapted_sides(weights: Sequence[Adapted], rank: int, turned: bool) -> list[Side]:
    groups: dict[object, list[tuple[Adapted, Tensor]]] = {}
    for weight in weights:
        factor, name = (weight.a, "A") if turned else (weight.b, "B")
        if any(weight.started) or not factor.parameter.requires_grad:
            raise WeightWatchError(
                f"The adapter of {weight.name} did not start at zero, or its factor {name} is frozen, so its "
                f"{'inputs' if turned else 'outputs'} can't be changed by {name} alone. Use `mode: update`."
            )
        basis = output_basis([oriented(w, turned).to(factor.device) for w in weight.directions.values()], rank)
        groups.setdefault((weight.a.shape, weight.b.shape, basis.shape, basis.device), []).append((weight, basis))
    found = []
    for alike in groups.values():
        for first in range(0, len(alike), TOGETHER):
            several, bases = zip(*alike[first : first + TOGETHER], strict=True)
            left, right = [w.b for w in several], [replace(w.a, turned=True) for w in several]
            found.append(
                Side(
                    names=[w.name for w in several],
                    trained=right if turned else left,
                    basis=torch.stack(bases),
                    others=left if turned else right,
                    scale=torch.tensor([w.scale for w in several], dtype=torch.float32, device=bases[0].device),
                )
            )
    return found


def _rows(tensor: Tensor) -> Tensor:
    return tensor[:, None] if tensor.ndim == 1 else tensor


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    rows = [_rows(tensor).float() for tensor in tensors]
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]
