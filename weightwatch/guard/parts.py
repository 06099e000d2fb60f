"""The weights that a guard changes, and how far each has moved along the directions it keeps out.

Under LoRA the movement of a weight is ``s X F``: the free factor X can be changed at will, F limits what the product
can express. With w in the same orientation and ``M = w Fᵀ``::

    ⟨s X F, w⟩ = s ⟨X, M⟩,    P(w) = N F with N = M (F Fᵀ)⁺,    ⟨P(w₁), P(w₂)⟩ = ⟨N₁, M₂⟩

so ``X ← X − c/s N`` takes c·P(w) back and changes nothing else. X is B for linear layers and A for embeddings. A weight
that is trained itself is its own free factor, with ``M = N = w``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from weightwatch.measure.low_rank import pseudo_inverses
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.precision import BLOCK, wide

Sums = tuple[Tensor, Tensor]
"""⟨x,w_k⟩, shape (n, K), and ⟨p_k,p_l⟩, shape (n, K, K), of n weights and K directions, in fp64."""


@dataclass(frozen=True)
class Trained:
    """A trained parameter, in the orientation in which it is a factor.

    Attributes:
        parameter: The parameter.
        turned: Whether the factor is its transpose.
    """

    parameter: nn.Parameter
    turned: bool = False

    @property
    def values(self) -> Tensor:
        """Its values: a view."""
        return self.oriented(self.parameter.detach())

    def oriented(self, tensor: Tensor) -> Tensor:
        """Return a view of a tensor of the parameter's shape, such as a gradient, in the orientation of the factor."""
        return tensor.T if self.turned else tensor


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
        started: ⟨s X₀ F₀,w_k⟩ or ⟨θ₀,w_k⟩ at the start of the run, shape (n, K).
    """

    names: Sequence[str]
    where: Sequence[int]
    scale: Tensor
    started: Tensor

    @abstractmethod
    def lever(self) -> Lever:
        """Return the lever of the free tensors now."""

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
    """

    trained: Sequence[Trained]
    seen: Sequence[Tensor]
    steps: Sequence[Tensor]

    @cached_property
    def gram(self) -> Tensor:
        """⟨p_k,p_l⟩, shape (n, K, K)."""
        rows = [torch.stack([wide(a * b).sum((1, 2)) for b in self.seen], 1) for a in self.steps]
        return torch.stack(rows, 1)

    def sums(self, changes: Sequence[Tensor]) -> Sums:
        """Return how far some changes of the tensors lead along the directions."""
        given = torch.stack([change.float() for change in changes])
        return torch.stack([wide(given * each).sum((1, 2)) for each in self.seen], 1), self.gram

    def subtract(self, tensors: Sequence[Tensor], c: Tensor) -> Tensor:
        """Subtract Σ c_k N_k from some tensors, in place, and return its squared norm."""
        parts = [c[:, k, None, None].to(step) * step for k, step in enumerate(self.steps)]
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        torch._foreach_sub_(list(tensors), [x.to(t.dtype) for t, x in zip(tensors, total, strict=True)])
        return total.square().sum()


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
        self.names, self.where, self._free, self._fixed = names, where, free, fixed
        device = free[0].values.device
        self.scale = torch.tensor(scale, dtype=torch.float64, device="cpu")[:, None]
        self.started = torch.tensor(started, dtype=torch.float64, device="cpu")
        self._directions = [_stacked(several, device) for several in zip(*directions, strict=True)]

    def lever(self) -> Stacked:
        """Return the lever of X."""
        fixed = torch.stack([each.values.float() for each in self._fixed])
        inverses = pseudo_inverses(wide(fixed @ fixed.mT)).to(fixed)
        seen = [
            left.float() @ (fixed.mT if right is None else right.float() @ fixed.mT) for left, right in self._directions
        ]
        return Stacked(self._free, seen, [each @ inverses for each in seen])

    def others(self) -> list[Stacked]:
        """Return the lever of F, to first order: ⟨s X dF, w⟩ = s ⟨dF, Xᵀ w⟩."""
        free = torch.stack([each.values.float() for each in self._free]).mT
        seen = [
            free @ left.float() if right is None else free @ left.float() @ right.float()
            for left, right in self._directions
        ]
        return [Stacked(self._fixed, seen, seen)]


class Full(Part, Lever):
    """A weight that is trained itself. It is its own lever.

    ⟨τ,w⟩ is ⟨θ_t,w⟩ − ⟨θ₀,w⟩, each with products in fp64, so that θ₀ is read once and not at each step.

    Args:
        name: Name of the weight.
        weight: The weight.
        start: θ₀, in the precision of the weight.
        where: Positions of the directions among all.
        directions: The K directions.
    """

    def __init__(
        self, name: str, weight: Trained, start: Tensor, where: Sequence[int], directions: Sequence[Delta]
    ) -> None:
        self.names, self.where, self.trained = [name], where, [weight]
        device = weight.values.device
        self._directions = [w.scaled().to(device) if isinstance(w, LowRank) else w.to(device) for w in directions]
        rows = [torch.stack([_product(_dense(a), b) for b in self._directions]) for a in self._directions]
        self._gram = torch.stack(rows)[None]
        self.scale = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        self.started = self._inner(start.to(device)).cpu()

    def lever(self) -> Lever:
        """Return itself."""
        return self

    def others(self) -> list[Lever]:
        """Return nothing: no other tensor limits the change."""
        return []

    def sums(self, changes: Sequence[Tensor]) -> Sums:
        """Return how far a change of the weight leads along the directions."""
        return self._inner(changes[0]), self._gram

    def subtract(self, tensors: Sequence[Tensor], c: Tensor) -> Tensor:
        """Subtract Σ c_k w_k from a tensor, in place, and return its squared norm."""
        for k, w in zip(c[0].tolist(), self._directions, strict=True):
            if k == 0:
                continue
            if isinstance(w, LowRank):
                rows, columns = w.oriented
                tensors[0].addmm_(rows.to(tensors[0].dtype), columns.to(tensors[0].dtype), alpha=-k)
            else:
                tensors[0].sub_(w.to(tensors[0].dtype), alpha=k)
        return c[0] @ self._gram[0].cpu() @ c[0]

    def _inner(self, tensor: Tensor) -> Tensor:
        return torch.stack([_product(tensor, w) for w in self._directions])[None]


def _product(tensor: Tensor, w: Delta) -> Tensor:
    """Return ⟨tensor,w⟩ with products in fp64: that of θ is far larger than its change in a step."""
    if isinstance(w, LowRank):
        rows, columns = w.oriented
        return ((wide(rows).T @ wide(tensor)) * wide(columns)).sum()
    pairs = zip(tensor.reshape(-1).split(BLOCK), w.reshape(-1).split(BLOCK), strict=True)
    return torch.stack([torch.dot(wide(x), wide(y)) for x, y in pairs]).sum()


def _dense(w: Delta) -> Tensor:
    return w.dense() if isinstance(w, LowRank) else w


def _stacked(several: Sequence[Delta], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the factors of one direction in all weights, shapes (n, m, r') and (n, r', k); or it, dense, and None."""
    low = [w.scaled() for w in several if isinstance(w, LowRank)]
    if low:
        return torch.stack([w.left for w in low]).to(device), torch.stack([w.right for w in low]).to(device)
    return torch.stack([w for w in several if isinstance(w, Tensor)]).to(device), None
