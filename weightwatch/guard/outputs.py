"""The outputs of a weight that directions write to, kept free of the update.

With orthonormal U of shape (out, k), ``τ ← τ − U Uᵀ τ``. Under LoRA τ = s B A, so ``B ← B − U Uᵀ B`` is exact.
"""

from dataclasses import dataclass

from torch import Tensor

from weightwatch.guard.parts import Trained


@dataclass(frozen=True)
class Outputs:
    """One weight, or the factor B of its adapter, whose rows are outputs.

    Attributes:
        name: Name of the weight in the plain model.
        trained: The weight or the factor.
        basis: U, shape (out, k).
        start: Uᵀ θ₀, shape (k, in); None for a factor that starts with a change of zero.
    """

    name: str
    trained: Trained
    basis: Tensor
    start: Tensor | None

    def movement(self) -> Tensor:
        """Return Uᵀ τ, shape (k, in); under LoRA Uᵀ B."""
        seen = self.basis.T @ self._rows(self.trained.values).float()
        return seen if self.start is None else seen - self.start

    def project(self, tensor: Tensor, seen: Tensor, strength: float) -> None:
        """Subtract U times ``seen`` from a tensor in the orientation of the weight, in place."""
        self._rows(tensor).sub_((self.basis @ seen * strength).to(tensor.dtype))

    def along(self, tensor: Tensor) -> Tensor:
        """Return Uᵀ times a gradient or a moment, shape (k, in)."""
        return self.basis.T @ self._rows(tensor).float()

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor[:, None] if tensor.ndim == 1 else tensor
