"""Random tensors, and directions made of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightwatch.vectors import Direction, LowRank


def drawn(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return normal random numbers of standard deviation 0.02."""
    return (0.02 * torch.randn(shape, generator=generator)).to(dtype)


def low_rank(shapes: Mapping[str, tuple[int, ...]], rank: int, generator: torch.Generator, name: str) -> Direction:
    """Return a direction in fp32 factors, as a contrast of two adapters is."""
    deltas = {
        path: LowRank(drawn((rows, rank), torch.float32, generator), drawn((rank, columns), torch.float32, generator))
        for path, (rows, columns) in shapes.items()
    }
    return Direction.from_tensors(deltas, name=name)


def dense(model: nn.Module, generator: torch.Generator, name: str) -> Direction:
    """Return a direction of bf16 tensors for all parameters of a model."""
    tensors = {path: drawn(tuple(p.shape), torch.bfloat16, generator) for path, p in model.named_parameters()}
    return Direction.from_tensors(tensors, name=name)
