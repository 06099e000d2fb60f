"""The outputs of weights that directions write to, kept free of the update.

With orthonormal U of shape (out, k), ``τ ← τ − U Uᵀ τ``. Under LoRA τ = s B A, so ``B ← B − U Uᵀ B`` is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightwatch.guard.parts import Trained


@dataclass(frozen=True)
class Outputs:
    """Weights of one shape, or the factors B of their adapters, whose rows are outputs.

    Attributes:
        names: Names of the n weights in the plain model.
        trained: The weights or the factors.
        basis: U of each, shape (n, out, k).
        start: Uᵀ θ₀ of each, shape (n, k, in); None for factors that start with a change of zero.
    """

    names: Sequence[str]
    trained: Sequence[Trained]
    basis: Tensor
    start: Tensor | None

    def movement(self) -> Tensor:
        """Return Uᵀ τ, shape (n, k, in); under LoRA Uᵀ B."""
        seen = self.along([each.values for each in self.trained])
        return seen if self.start is None else seen - self.start

    def along(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return Uᵀ times some changes of the weights, such as gradients, shape (n, k, in)."""
        rows = [self._rows(tensor).float() for tensor in tensors]
        return self.basis.mT @ (torch.stack(rows) if len(rows) > 1 else rows[0][None])

    def subtract(self, tensors: Sequence[Tensor], seen: Tensor) -> None:
        """Subtract U times ``seen`` from some tensors, in place."""
        parts = (self.basis @ seen).unbind()
        torch._foreach_sub_(
            [self._rows(tensor) for tensor in tensors],
            [part.to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)],
        )

    @staticmethod
    def _rows(tensor: Tensor) -> Tensor:
        return tensor[:, None] if tensor.ndim == 1 else tensor
