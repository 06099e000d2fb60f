"""A weight that is trained itself, as a guard takes multiples of directions out of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weightwatch.guard.parts import Lever, Part, Sums
from weightwatch.guard.trained import Trained, cut
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.precision import BLOCK, wide
from weightwatch.vectors.weights.reader import Box


class Full(Part, Lever):
    """A weight that is trained itself. It is its own lever.

    ⟨τ,w⟩ is ⟨θ_t,w⟩ − ⟨θ₀,w⟩, each with products in fp64, so that θ₀ is read once and not at each step.

    Args:
        name: Name of the weight.
        weight: The weight.
        start: Reads a box of θ₀, in the precision of the weight.
        where: Positions of the directions among all.
        directions: The K directions.
    """

    fixed = ()

    def __init__(
        self,
        name: str,
        weight: Trained,
        start: Callable[[Box], Tensor],
        where: Sequence[int],
        directions: Sequence[Delta],
    ) -> None:
        self.names, self.where, self.trained, self._weight = [name], where, [weight], weight
        # Of each direction the part in each box.
        self._directions = [[_on(cut(w, box), weight.device) for box in weight.boxes] for w in directions]
        rows = []
        for one in self._directions:
            dense = [_dense(part) for part in one]
            rows.append(torch.stack([self._along(dense, other) for other in self._directions]))
        self._gram = torch.stack(rows)[None]
        self.scale = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        starts = [start(box).to(weight.device) for box in weight.boxes]
        self.started = torch.stack([self._along(starts, each) for each in self._directions])[None].cpu()

    def lever(self, fixed: Sequence[Tensor]) -> Lever:
        """Return itself."""
        return self

    def others(self) -> list[Lever]:
        """Return nothing: no other tensor limits the change."""
        return []

    def sums(self, changes: Sequence[Tensor]) -> Sums:
        """Return how far a change of the weight leads along the directions."""
        pieces = self._weight.pieces(changes[0])
        return torch.stack([self._along(pieces, each) for each in self._directions])[None], self._gram

    def subtract(self, tensors: Sequence[Tensor], c: Tensor) -> Tensor:
        """Subtract Σ c_k w_k from a tensor, in place, and return its squared norm."""
        pieces = self._weight.pieces(tensors[0])
        for k, direction in zip(c[0].tolist(), self._directions, strict=True):
            if k == 0:
                continue
            for piece, w in zip(pieces, direction, strict=True):
                if isinstance(w, LowRank):
                    rows, columns = w.oriented
                    piece.addmm_(rows.to(piece.dtype), columns.to(piece.dtype), alpha=-k)
                else:
                    piece.sub_(w.to(piece.dtype), alpha=k)
        return c[0] @ self._gram[0].cpu() @ c[0]

    def _along(self, pieces: Sequence[Tensor], direction: Sequence[Delta]) -> Tensor:
        """Return the inner product of a tensor with a direction in the boxes that this process counts."""
        if not (pieces and self._weight.counts):
            return torch.zeros((), dtype=torch.float64, device="cpu")
        return torch.stack([_product(piece, w) for piece, w in zip(pieces, direction, strict=True)]).sum()


def _on(w: Delta, device: torch.device) -> Delta:
    return w.scaled().to(device) if isinstance(w, LowRank) else w.to(device)


def _product(tensor: Tensor, w: Delta) -> Tensor:
    """Return ⟨tensor,w⟩ with products in fp64: that of θ is far larger than its change in a step."""
    if isinstance(w, LowRank):
        rows, columns = w.oriented
        return ((wide(rows).T @ wide(tensor)) * wide(columns)).sum()
    pairs = zip(tensor.reshape(-1).split(BLOCK), w.reshape(-1).split(BLOCK), strict=True)
    return torch.stack([torch.dot(wide(x), wide(y)) for x, y in pairs]).sum()


def _dense(w: Delta) -> Tensor:
    return w.dense() if isinstance(w, LowRank) else w
