"""Multiples of directions, taken back from the update or out of the gradients."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightwatch.config import GuardSettings
from weightwatch.guard.conditions import NOT_FINITE
from weightwatch.guard.momentum import Momentum, tensors_of
from weightwatch.guard.parts import Lever, Part
from weightwatch.guard.projection import coefficients
from weightwatch.guard.trained import Trained
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError, interrupts

Measured = tuple[Part, Lever, list[Tensor]]
"""A lever of a part, and the changes of its trained tensors that are measured: the tensors, gradients or moments."""

Turned = tuple[Part, Lever, list[Tensor], Tensor]
"""The same, and the multiples of the directions to take out, shape (n, K)."""


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
        ranks: The processes that have the weights together, whose calls are collective.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        directions: Sequence[Direction],
        settings: GuardSettings,
        momentum: Momentum,
        ranks: Ranks = ALONE,
    ) -> None:
        self._parts, self._count, self._momentum, self._ranks = parts, len(directions), momentum, ranks
        self._strength, self._whole, self._both_ways = settings.strength, settings.per == "model", settings.both_ways
        self._sizes = [len(part.names) for part in parts]
        self._started = self._starts()
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
        found, inner, gram = self._movement()
        c = self._coefficients(inner, gram, self._high, self._low) * self._strength
        moved = [
            (part, lever, tensors, mine)
            for (part, lever, tensors), mine in zip(found, c.split(self._sizes), strict=True)
            if bool(mine.any())
        ]
        touched = {
            id(each.parameter)
            for _, lever, _, mine in moved
            for each, yes in zip(lever.trained, mine.any(1).tolist(), strict=True)
            if yes
        }
        if moments and moved:
            levers = [(part, lever) for part, lever, _ in found]
            moved += self._turned(levers, lambda one: self._momentum.of(one) if id(one.parameter) in touched else None)
        for part, lever, tensors, mine in moved:  # nothing has been changed before, and no process waits from here on
            lever.subtract(tensors, self._of(part, mine))
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
        levers = [(part, each) for part, lever in self._levers() for each in (lever, *part.others())]
        gradients = [each.parameter.grad for _, lever in levers for each in lever.trained]
        found = [gradient for gradient in gradients if gradient is not None]
        if scaled and not all(bool(gradient.isfinite().all()) for gradient in found):
            return None
        whole = float(torch.stack([norm.cpu() for norm in torch._foreach_norm(found)]).norm()) if found else 0.0
        turned = self._turned(levers, lambda trained: trained.parameter.grad)
        squares = [lever.subtract(tensors, self._of(part, c)).cpu() for part, lever, tensors, c in turned]
        taken = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        return Taken(None, taken / whole if whole > 0 else 0.0)

    def _turned(self, levers: Sequence[tuple[Part, Lever]], of: Callable[[Trained], Tensor | None]) -> list[Turned]:
        """Return gradients or moments that would move the weights towards the directions, and what to take out.

        The weights move against them, so the part to take out has a negative inner product with a direction.
        """
        found, inner, gram = self._sums(
            lambda: [(part, lever, tensors_of(lever.trained, of)) for part, lever in levers]
        )
        zero = torch.zeros_like(inner)
        low = zero if self._both_ways else torch.full_like(zero, -torch.inf)
        c = -self._coefficients(-inner, gram, zero, low) * self._strength
        several = c.split([len(part.names) for part, *_ in found])
        return [
            (part, lever, tensors, mine)
            for (part, lever, tensors), mine in zip(found, several, strict=True)
            if tensors and bool(mine.any())
        ]

    def _sums(self, make: Callable[[], list[Measured]]) -> tuple[list[Measured], Tensor, Tensor]:
        """Return levers with changes, and the inner products of the changes with all K directions, on the CPU.

        The products have shapes (T, K) and (T, K, K). One call adds up those of all processes.

        Args:
            make: Returns the levers, in the same order everywhere. A fault in it is one of all processes.
        """
        found: list[Measured] = []
        table = torch.zeros(sum(self._sizes), self._count, self._count + 1, dtype=torch.float64, device="cpu")
        fault = None
        try:
            found = make()
            table = self._table(found)
        except BaseException as error:
            if interrupts(error):
                raise
            fault = error
        table = torch.from_numpy(self._ranks.add(table.numpy(), fault))
        return found, table[..., 0], table[..., 1:]

    def _table(self, levers: Sequence[Measured]) -> Tensor:
        """Return this process's part of the inner products, ⟨change,w_k⟩ beside ⟨p_k,p_l⟩, shape (T, K, 1 + K)."""
        total = sum(len(part.names) for part, *_ in levers)
        table = torch.zeros(total, self._count, self._count + 1, dtype=torch.float64, device="cpu")
        measured = [(part, lever.sums(tensors) if tensors else None) for part, lever, tensors in levers]
        first = 0
        for part, sums in measured:  # read at the end, so that no device waits in between
            rows = slice(first, first + len(part.names))
            first += len(part.names)
            if sums is not None:
                along, between = sums
                where = torch.tensor(part.where, dtype=torch.long, device="cpu")
                table[rows, where, 0] = part.scale * along.cpu()
                table[rows, where[:, None], 1 + where] = between.cpu()
        return table

    def _movement(self) -> tuple[list[Measured], Tensor, Tensor]:
        """Return the levers now with their tensors, how far these have moved along the directions, and ⟨p_k,p_l⟩."""
        found, inner, gram = self._sums(
            lambda: [(part, lever, [each.values for each in lever.trained]) for part, lever in self._levers()]
        )
        return found, inner - self._started, gram

    def _starts(self) -> Tensor:
        """Return how far the weights were along the directions at the start of the run, shape (T, K)."""
        found = torch.zeros(sum(self._sizes), self._count, dtype=torch.float64, device="cpu")
        for part, rows in zip(self._parts, found.split(self._sizes), strict=True):
            rows[:, torch.tensor(part.where, dtype=torch.long, device="cpu")] = part.started
        return torch.from_numpy(self._ranks.add(found.numpy()))

    def _levers(self) -> list[tuple[Part, Lever]]:
        """Return the lever of each part now."""
        fixed = [each for part in self._parts for each in part.fixed]
        keys = [f"{i:08}" for i in range(len(fixed))]  # gathered in this order on every process
        pairs = list(zip(keys, fixed, strict=True))
        gathered = self._ranks.gather({key: each.local_tensor() for key, each in pairs if each.shards is not None})
        whole = iter(
            [
                each.factor(gathered[key].to(each.device)) if each.shards is not None else each.values
                for key, each in pairs
            ]
        )
        return [(part, part.lever([next(whole) for _ in part.fixed])) for part in self._parts]

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
