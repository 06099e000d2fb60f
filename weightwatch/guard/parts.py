"""The weights that a guard changes, and how far each has moved along the directions it keeps out.

Under LoRA the movement of a weight is ``s X F``: the free factor X can be changed at will, F limits what the product
can express. With w in the same orientation and ``M = w Fᵀ``::

    ⟨s X F, w⟩ = s ⟨X, M⟩,    P(w) = N F with N = M (F Fᵀ)⁺,    ⟨P(w₁), P(w₂)⟩ = ⟨N₁, M₂⟩

so ``X ← X − c/s N`` takes c·P(w) back and changes nothing else. X is B for linear layers and A for embeddings. A weight
that is trained itself is its own free factor, with ``M = N = w``.

Where a weight is sharded over processes, each of them sums over the elements of X that it has, and the sums of all
processes are added. F is gathered; it is small.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from weightwatch.guard.trained import Trained
from weightwatch.measure.low_rank import pseudo_inverses
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.precision import wide

Sums = tuple[Tensor, Tensor]
"""⟨x,w_k⟩, shape (n, K), and ⟨p_k,p_l⟩, shape (n, K, K), of n weights and K directions, in fp64, on this process."""


class Lever(ABC):
    """Directions as n trained tensors see them: what a change of the tensors does along each direction.

    It holds while the other factors of the weights stay as they are.
    """

    trained: Sequence[Trained]
    """The trained tensors."""

    @abstractmethod
    def sums(self, changes: Sequence[Tensor]) -> Sums:
        """Return how far some changes of the tensors lead along the directions: the tensors, or their gradients."""

    @abstractmethod
    def subtract(self, tensors: Sequence[Tensor], c: Tensor) -> Tensor:
        """Subtract the smallest changes that lead Σ c_k p_k along the directions from some tensors, in place.

        Returns:
            The squared norm of what was subtracted.
        """


class Part(ABC):
    """One or several weights that are guarded together.

    Attributes:
        names: Names of the n weights in the plain model.
        where: Positions of the directions that they have, among all.
        scale: What a change of the free tensors is multiplied with, for each weight, shape (n, 1).
        started: ⟨s X₀ F₀,w_k⟩ or ⟨θ₀,w_k⟩ at the start of the run, shape (n, K): this process's part.
        fixed: The trained tensors that limit the change.
    """

    names: Sequence[str]
    where: Sequence[int]
    scale: Tensor
    started: Tensor
    fixed: Sequence[Trained]

    @abstractmethod
    def lever(self, fixed: Sequence[Tensor]) -> Lever:
        """Return the lever of the free tensors now.

        Args:
            fixed: The whole values of what limits the change.
        """

    @abstractmethod
    def others(self) -> Sequence[Lever]:
        """Return the levers of all other trained tensors, which limit the change."""


@dataclass(frozen=True)
class Stacked(Lever):
    """A lever of tensors of one shape.

    Attributes:
        trained: The n tensors.
        seen: M of each direction, shape (n, *shape).
        steps: N of each direction.
        own: One for each element that this process counts, else zero, shape (n, *shape); None if it counts all.
    """

    trained: Sequence[Trained]
    seen: Sequence[Tensor]
    steps: Sequence[Tensor]
    own: Tensor | None = None

    @cached_property
    def gram(self) -> Tensor:
        """⟨p_k,p_l⟩, shape (n, K, K)."""
        counted = [self._counted(step) for step in self.steps]
        rows = [torch.stack([wide(a * b).sum((1, 2)) for b in self.seen], 1) for a in counted]
        return torch.stack(rows, 1)

    def sums(self, changes: Sequence[Tensor]) -> Sums:
        """Return how far some changes of the tensors lead along the directions."""
        filled = [trained.filled(change) for trained, change in zip(self.trained, changes, strict=True)]
        given = self._counted(torch.stack(filled))
        return torch.stack([wide(given * each).sum((1, 2)) for each in self.seen], 1), self.gram

    def subtract(self, tensors: Sequence[Tensor], c: Tensor) -> Tensor:
        """Subtract Σ c_k N_k from some tensors, in place, and return its squared norm."""
        parts = [c[:, k, None, None].to(step) * step for k, step in enumerate(self.steps)]
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        several = list(zip(self.trained, tensors, total, strict=True))
        into = [piece for trained, tensor, _ in several for piece in trained.pieces(tensor)]
        if into:
            changes = [part for trained, _, change in several for part in trained.parts(change)]
            torch._foreach_sub_(into, [part.to(piece.dtype) for piece, part in zip(into, changes, strict=True)])
        return total.square().sum()

    def _counted(self, tensor: Tensor) -> Tensor:
        return tensor if self.own is None else tensor * self.own


class Factors(Part):
    """LoRA on several weights whose factors and directions have the same shapes.

    Args:
        names: Names of the n weights.
        free: X of each weight, shape (m, r).
        fixed: F of each weight, shape (r, k).
        scale: s of each weight.
        where: Positions of the directions among all.
        directions: The K directions of each weight, in the orientation of X F.
        started: ⟨s X₀ F₀,w_k⟩ of each weight and direction.
    """

    def __init__(
        self,
        names: Sequence[str],
        free: Sequence[Trained],
        fixed: Sequence[Trained],
        scale: Sequence[float],
        where: Sequence[int],
        directions: Sequence[Sequence[Delta]],
        started: Sequence[Sequence[float]],
    ) -> None:
        self.names, self.where, self._free, self.fixed = names, where, free, fixed
        device = free[0].device
        self.scale = torch.tensor(scale, dtype=torch.float64, device="cpu")[:, None]
        self.started = torch.tensor(started, dtype=torch.float64, device="cpu")
        self._directions = [_stacked(several, device) for several in zip(*directions, strict=True)]
        self._own: Tensor | None = None
        if any(each.shards is not None or not each.counts for each in free):
            ones = [each.counts * each.filled(torch.ones_like(each.values)) for each in free]
            self._own = torch.stack(ones)

    def lever(self, fixed: Sequence[Tensor]) -> Stacked:
        """Return the lever of X."""
        limits = torch.stack([each.float() for each in fixed]).mT
        inverses = pseudo_inverses(wide(limits.mT @ limits)).to(limits)
        seen = [
            left.float() @ (limits if right is None else right.float() @ limits) for left, right in self._directions
        ]
        return Stacked(self._free, seen, [each @ inverses for each in seen], self._own)

    def others(self) -> list[Stacked]:
        """Return the lever of F, to first order: ⟨s X dF, w⟩ = s ⟨dF, Xᵀ w⟩."""
        free = torch.stack([each.values.float() for each in self._free]).mT
        seen = [
            free @ left.float() if right is None else free @ left.float() @ right.float()
            for left, right in self._directions
        ]
        return [Stacked(self.fixed, seen, seen)]


def _stacked(several: Sequence[Delta], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the factors of one direction in all weights, shapes (n, m, r') and (n, r', k); or it, dense, and None."""
    low = [w.scaled() for w in several if isinstance(w, LowRank)]
    if low:
        return torch.stack([w.left for w in low]).to(device), torch.stack([w.right for w in low]).to(device)
    return torch.stack([w for w in several if isinstance(w, Tensor)]).to(device), None
