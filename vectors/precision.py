"""Exact sums and products of floating-point tensors: fp32 without shortcuts, fp64 above that."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 19
"""Elements in one block of a dense tensor: what is converted to fp32 at a time (2 MB), small beside any weight."""


@contextmanager
def exact() -> Iterator[None]:
    """Switch off gradients and what makes fp32 products inexact (TF32, autocast) inside a ``with`` block."""
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


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in fp64; on the CPU if its device has no fp64 (Apple's MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return ⟨a, b⟩ of two flat tensors as an fp64 scalar.

    Products are fp32 and summed pairwise within a block; the sums of the blocks are added in fp64. ``torch.dot`` adds
    one product after the other, which drifts by 1e-4 if all values are alike.
    """
    if a is b:
        return torch.stack([wide((x := part.float()).mul(x).sum()) for part in a.split(BLOCK)]).sum()
    pieces = zip(a.split(BLOCK), b.split(BLOCK), strict=True)
    return torch.stack([wide((x.float() * y.float()).sum()) for x, y in pieces]).sum()
