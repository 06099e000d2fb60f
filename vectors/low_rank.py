"""A change of one weight tensor, dense or as a product of two thin factors, and inner products of such changes.

``LowRank`` changes are never multiplied out. With changes ``L1 R1`` and ``L2 R2``::

    <L1 R1, L2 R2> = sum( (L1^T L2) * (R1 R2^T) )

so a product of two rank-r changes of an n x m weight costs r^2 (n + m) multiplications instead of n m r.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The change ``scale * left @ right`` of one weight.

    Attributes:
        left: Shape (out, r): LoRA's B.
        right: Shape (r, in): LoRA's A.
        transposed: The stored weight is the transpose of the product, as for embeddings and GPT-2's ``Conv1D``.
        limited: Which factor keeps its start in training and so limits what the change can express: ``right``
            for linear layers (A), ``left`` for embeddings, whose adapter is the product's transpose.
        scale: LoRA's scaling, as a number beside the factors of a model in training, so that a check need not copy
            them. Those of a ``Direction`` have it in ``left``.
    """

    left: Tensor
    right: Tensor
    transposed: bool = False
    limited: str = "right"
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight that it changes."""
        shape = (self.left.shape[0], self.right.shape[1])
        return shape[::-1] if self.transposed else shape

    @property
    def rank(self) -> int:
        """The number of columns of ``left``."""
        return self.left.shape[1]

    @cached_property
    def left_gram(self) -> Tensor:
        """``leftᵀ left``, shape (r, r), multiplied in fp32 and kept in fp64."""
        return wide(self.left.float().T @ self.left.float())

    @cached_property
    def right_gram(self) -> Tensor:
        """``right rightᵀ``, shape (r, r), multiplied in fp32 and kept in fp64."""
        return wide(self.right.float() @ self.right.float().T)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "LowRank":
        """Return it with both factors on a device and of a dtype; the same tensors where nothing changes."""
        return replace(self, left=self.left.to(device, dtype), right=self.right.to(device, dtype))

    def scaled(self) -> "LowRank":
        """Return it with the scale in ``left``; itself where that is one."""
        return self if self.scale == 1 else replace(self, left=self.left * self.scale, scale=1.0)

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """The two factors of the weight as it is stored: ``left, right``, or of its transpose ``rightᵀ, leftᵀ``."""
        whole = self.scaled()
        return (whole.right.T, whole.left.T) if self.transposed else (whole.left, whole.right)

    def part(self, box: tuple[slice, ...]) -> Tensor:
        """Multiply out the part of the stored weight that lies in a box, one slice for each dimension, in fp32."""
        rows, columns = self.stored
        return rows[box[0]].float() @ columns[:, box[1]].float()

    def dense(self) -> Tensor:
        """Multiply out, in fp32 and in the orientation of the stored weight."""
        product = self.left.float() * self.scale @ self.right.float()
        return product.T if self.transposed else product


Delta: TypeAlias = LowRank | Tensor


@contextmanager
def exact() -> Iterator[None]:
    """Switch off what makes fp32 products inexact (TF32, autocast) and gradients, for the time of a measurement."""
    switches = _precision_switches()
    before = [getattr(backend, switch) for backend, switch, _ in switches]
    for backend, switch, full in switches:
        setattr(backend, switch, full)
    try:
        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for (backend, switch, _), value in zip(switches, before, strict=True):
            setattr(backend, switch, value)


def _precision_switches() -> list[tuple[Any, str, Any]]:
    """Return backend, attribute and full-precision value of each switch that lets fp32 products be rounded."""
    cuda: Any = torch.backends.cuda.matmul
    mkldnn: Any = torch.backends.mkldnn
    if hasattr(cuda, "fp32_precision"):
        # torch 2.9 on. Reading the old switch raises once the new one was set, as transformers does for tf32=True.
        return [(backend, "fp32_precision", "ieee") for backend in (cuda, mkldnn.matmul)]
    return [(cuda, "allow_tf32", False)]


def square(delta: Delta) -> float:
    """Return the squared Frobenius norm of a change; of factors it is ``scale² sum( (LᵀL) * (R Rᵀ) )``."""
    if isinstance(delta, LowRank):
        return delta.scale**2 * float((delta.left_gram * delta.right_gram).sum())
    return float(dot(delta.reshape(-1), delta.reshape(-1)))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return <a, b> of two flat tensors: products in fp32 blocks, each summed pairwise, the blocks' sums in fp64.

    ``torch.dot`` would add one after the other, which drifts by 1e-4 where all values are alike.
    """
    pieces = zip(blocks(a), blocks(b), strict=True)
    return torch.stack([wide((x.float() * y.float()).sum()) for x, y in pieces]).sum()


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in fp64; on the CPU where its device has no fp64 (Apple's MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


BLOCK = 1 << 19
"""Elements in one block of a dense tensor: what is converted to fp32 at a time (2 MB), small beside any weight."""


def blocks(tensor: Tensor, size: int = BLOCK) -> Iterator[Tensor]:
    """Yield a tensor as flat pieces of at most ``size`` elements, without a copy where it is contiguous."""
    yield from tensor.reshape(-1).split(size)
