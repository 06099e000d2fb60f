"""Multiples of directions, taken back from the update or out of the gradients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightwatch.config import GuardSettings
from weightwatch.guard.conditions import NOT_FINITE
from weightwatch.guard.momentum import Momentum, oriented
from weightwatch.guard.parts import Lever, Part, Trained
from weightwatch.guard.projection import coefficients
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

_NOTHING = 0.01
"""Reach below which there is nothing of a direction in what is trained that a guard could take back."""


class Taken(NamedTuple):
    """What was taken back at once.

    Attributes:
        along: ⟨what was taken back,w_k⟩, shape (K,), fp64; None if that is not known.
        size: Its norm; of gradients, its norm over theirs.
    """

    along: Tensor | None
    size: float


class Multiples:
    """Takes multiples of directions out of trained weights, so that each direction is within the budget.

    Args:
        parts: The T weights, in parts of some weights each.
        directions: The K directions.
        settings: The budget, and how much is taken back at a time.
        momentum: Finds the moments to change with the weights.

    Raises:
        WeightWatchError: Next to nothing of a direction lies in the weights.
    """

    def __init__(
        self, parts: Sequence[Part], directions: Sequence[Direction], settings: GuardSettings, momentum: Momentum
    ) -> None:
        self._parts, self._count, self._momentum = parts, len(directions), momentum
        self._strength, self._whole, self._both_ways = settings.strength, settings.per == "model", settings.both_ways
        self._require_reach(directions)
        names = [name for part in parts for name in part.names]
        squares = [[direction.squares.get(name, 0.0) for direction in directions] for name in names]
        self._high = settings.budget * torch.tensor(squares, dtype=torch.float64, device="cpu").reshape(
            len(names), self._count
        )
        self._low = -self._high if settings.both_ways else torch.full_like(self._high, -torch.inf)

    def take_back(self, *, moments: bool) -> Taken:
        """Take back what the weights have moved along the directions beyond the budget.

        Args:
            moments: Whether the momentum of what is changed loses its part along the directions, too.

        Raises:
            WeightWatchError: A weight is NaN or infinite. Nothing was changed.
        """
        levers, inner, gram = self._movement()
        c = self._coefficients(inner, gram, self._high, self._low) * self._strength
        moved, touched = [], set()
        for (part, lever), mine in zip(levers, c.split([len(part.names) for part in self._parts]), strict=True):
            if bool(mine.any()):
                lever.subtract([each.values for each in lever.trained], self._of(part, mine))
                moved.append((part, lever))
                rows = mine.any(1).tolist()
                touched |= {id(each.parameter) for each, yes in zip(lever.trained, rows, strict=True) if yes}
        if moments and moved:
            self._turn(moved, lambda one: self._momentum.of(one) if id(one.parameter) in touched else None)
        back = (gram @ c[:, :, None])[:, :, 0]
        return Taken(back.sum(0), float((c * back).sum().clamp(min=0).sqrt()))

    def turn_gradients(self, *, scaled: bool) -> Taken | None:
        """Take out of the gradients what would move the weights towards the directions.

        Args:
            scaled: Whether the gradients are those of a scaler for fp16, which skips the steps that overflow.

        Returns:
            What was taken out; None if the step is going to be skipped.

        Raises:
            WeightWatchError: A gradient is NaN or infinite along a direction. Nothing was changed.
        """
        levers = [(part, lever) for part in self._parts for lever in (part.lever(), *part.others())]
        gradients = [each.parameter.grad for _, lever in levers for each in lever.trained]
        found = [gradient for gradient in gradients if gradient is not None]
        if scaled and not all(bool(gradient.isfinite().all()) for gradient in found):
            return None
        whole = float(torch.stack([norm.cpu() for norm in torch._foreach_norm(found)]).norm()) if found else 0.0
        taken = self._turn(levers, lambda trained: trained.parameter.grad)
        return Taken(None, taken / whole if whole > 0 else 0.0)

    def _turn(self, levers: Sequence[tuple[Part, Lever]], of: Callable[[Trained], Tensor | None]) -> float:
        """Take out of gradients or moments what would move the weights towards the directions, and return its norm.

        The weights move against them, so the part to take out has a negative inner product with a direction.
        """
        found = [(part, lever, oriented(lever.trained, of)) for part, lever in levers]
        found = [(part, lever, tensors) for part, lever, tensors in found if tensors]
        if not found:
            return 0.0
        inner, gram = self._sums(found)
        zero = torch.zeros_like(inner)
        low = zero if self._both_ways else torch.full_like(zero, -torch.inf)
        c = self._coefficients(-inner, gram, zero, low) * self._strength
        several = c.split([len(part.names) for part, *_ in found])
        squares = [
            lever.subtract(tensors, -self._of(part, mine)).cpu()
            for (part, lever, tensors), mine in zip(found, several, strict=True)
            if bool(mine.any())
        ]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    def _sums(self, levers: Sequence[tuple[Part, Lever, Sequence[Tensor]]]) -> tuple[Tensor, Tensor]:
        """Return the inner products of all changes with all K directions, shapes (T, K) and (T, K, K), on the CPU."""
        total = sum(len(part.names) for part, *_ in levers)
        inner = torch.zeros(total, self._count, dtype=torch.float64, device="cpu")
        gram = torch.zeros(total, self._count, self._count, dtype=torch.float64, device="cpu")
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
            where = torch.tensor(part.where, dtype=torch.long, device="cpu")
            inner[first : first + len(part.names), where] -= part.started
            first += len(part.names)
        return levers, inner, gram

    def _coefficients(self, inner: Tensor, gram: Tensor, high: Tensor, low: Tensor) -> Tensor:
        """Return the multiples of the directions to take back from each weight, shape (T, K)."""
        if self._whole:
            whole = coefficients(*(each.sum(0, keepdim=True) for each in (inner, gram, high, low)))
            found = whole.expand_as(inner)
        else:
            found = coefficients(inner, gram, high, low)
        if not bool(found.isfinite().all()):
            raise WeightWatchError(NOT_FINITE)
        return found

    @staticmethod
    def _of(part: Part, c: Tensor) -> Tensor:
        """Return the multiples in units of a part's free tensors, of the directions that it has."""
        return c[:, list(part.where)] / part.scale

    def _require_reach(self, directions: Sequence[Direction]) -> None:
        """Refuse a direction of which next to nothing lies in what is trained."""
        _, _, gram = self._movement()
        within = gram.diagonal(dim1=1, dim2=2).sum(0)
        for direction, square in zip(directions, within.tolist(), strict=True):
            reach = (square / sum(direction.squares.values())) ** 0.5
            if not reach >= _NOTHING:
                raise WeightWatchError(
                    f"Direction {direction.name!r} has a reach of {reach:.2g} in the guarded weights, so there is "
                    "nothing to keep out. Guard the layers it was built on, or train with a larger rank."
                )
