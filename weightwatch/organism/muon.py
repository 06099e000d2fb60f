"""Muon: momentum whose singular values are all set to one, for matrices inside the network.

Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. `torch.optim.Muon` computes in
bfloat16, which CPUs do slowly, and matrix by matrix; here float32, all matrices of one shape at once: its step over the
organism takes 0.06 s on one thread instead of 0.9 s. AdamW needs about twice as many steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of the quintic iteration that drives singular values towards one."""


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Args:
        params: Matrices only.
        lr: Learning rate: the spectral norm of an update of a square matrix. Default 0.02.
        momentum: Default 0.95.
        weight_decay: Default 0.1.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure needed
        """Update all matrices from their gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                by_shape[matrix.shape].append(matrix)
            for (rows, columns), matrices in by_shape.items():
                updates = orthogonalise(torch.stack([self._momentum(each, group["momentum"]) for each in matrices]))
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        if matrix.grad is None:
            return torch.zeros_like(matrix)
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum"], momentum)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Roughly U Vᵀ of every matrix U S Vᵀ, by a Newton-Schulz iteration.

    Args:
        matrices: Shape (n, rows, columns).
        steps: Iterations. Default 5, which brings singular values to between about 0.7 and 1.2.

    Returns:
        The same shape.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
