"""Muon, an optimizer that replaces the momentum of a matrix by the nearest orthogonal matrix.

Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. `torch.optim.Muon` computes in
bfloat16, which is slow on CPUs, and one matrix at a time. This one computes in float32, all matrices of a shape in one
batch: a step of the organism takes 0.06 s on one thread instead of 0.9 s. AdamW needs about twice as many steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of the quintic iteration that drives singular values towards one."""
ITERATIONS = 5
"""Brings singular values to between about 0.7 and 1.2."""
MOMENTUM = 0.95
WEIGHT_DECAY = 0.1


class Muon(Optimizer):
    """Muon with Nesterov momentum of 0.95 and decoupled weight decay of 0.1.

    Args:
        params: Matrices only.
        lr: Learning rate: the spectral norm of the update of a square matrix.

    Example:
        >>> matrix = torch.nn.Parameter(torch.zeros(2, 2))
        >>> matrix.grad = torch.diag(torch.tensor([3.0, 3.0]))
        >>> Muon([matrix], lr=0.02).step()
        >>> torch.allclose(matrix, -0.02 * torch.eye(2), rtol=0.3)
        True
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure needed
        """Update all matrices from their gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = orthogonalise(torch.stack([self._momentum(matrix) for matrix in matrices]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * WEIGHT_DECAY).sub_(update, alpha=rate)

    def _momentum(self, matrix: Tensor) -> Tensor:
        if matrix.grad is None:
            return torch.zeros_like(matrix)
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(state["momentum"], MOMENTUM)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return roughly U Vᵀ for each matrix U S Vᵀ, by five Newton-Schulz iterations.

    Args:
        matrices: Shape (n, rows, columns).

    Returns:
        The same shape. Singular values lie between about 0.7 and 1.2.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
