"""What k·w adds to the output of one layer, so that it is that of ``W + k w``."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from weightwatch.vectors.low_rank import Delta, LowRank


@dataclass(frozen=True)
class Found:
    """A layer with weights that directions have.

    Attributes:
        layer: The layer.
        names: Names of the weights in the plain model.
        changes: The directions' changes of them.
    """

    layer: nn.Module
    names: list[str]
    changes: dict[str, list[Delta]]


class Shift(ABC):
    """What k·w adds to the output of one layer.

    Attributes:
        layer: The layer.
        names: Names of the weights in the plain model.
        used: Whether it was added since this was reset.
    """

    def __init__(self, found: Found) -> None:
        self.layer, self.names, self.used = found.layer, found.names, False

    @abstractmethod
    def of(self, x: Tensor, output: Tensor) -> Tensor:
        """Return what is added to the layer's output for an input."""


class Products(Shift):
    """That of a linear layer or an embedding: products with w, which are moved to where they are used."""

    def __init__(self, found: Found, k: float) -> None:
        super().__init__(found)
        self._k = k
        self._weights: list[tuple[Tensor, Tensor | None]] = [
            w.oriented if isinstance(w, LowRank) else (w, None) for w in found.changes.get("weight", ())
        ]
        self._biases = [w for w in found.changes.get("bias", ()) if isinstance(w, Tensor)]  # no vector is in factors

    def of(self, x: Tensor, output: Tensor) -> Tensor:
        """Return what is added, on the device and in the precision of the output."""
        held = [*(left for left, _ in self._weights), *self._biases]
        if any(each.device != output.device or each.dtype != output.dtype for each in held):
            self._weights = [(left.to(output), None if r is None else r.to(output)) for left, r in self._weights]
            self._biases = [bias.to(output) for bias in self._biases]
        added = torch.zeros_like(output)
        for left, right in self._weights:
            added = added + self._product(x, left, right, output)
        for bias in self._biases:
            added = added + bias
        return self._k * added

    def _product(self, x: Tensor, left: Tensor, right: Tensor | None, output: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Embedding):
            rows = embedding(x, left) if right is None else embedding(x, left) @ right
            return rows * getattr(self.layer, "embed_scale", 1.0)  # Gemma's and BART's embeddings
        x = x.to(output.dtype)
        if isinstance(self.layer, nn.Linear):  # w is (out, in)
            return x @ left.T if right is None else (x @ right.T) @ left.T
        return x @ left if right is None else (x @ left) @ right  # Conv1D's weight is (in, out)


class Norm(Shift):
    """That of a norm, which is affine in its scale and bias: the difference of two such norms."""

    def __init__(self, found: Found, k: float) -> None:
        super().__init__(found)
        self._with, self._without = (_twin(found.layer) for _ in range(2))
        for key, several in found.changes.items():
            scale = getattr(self._with, key)
            scale.copy_(k * torch.stack([w for w in several if isinstance(w, Tensor)]).sum(0))

    def of(self, x: Tensor, output: Tensor) -> Tensor:
        """Return what is added, on the device and in the precision of the output."""
        if next(self._with.parameters()).device != x.device:
            self._with, self._without = self._with.to(x.device), self._without.to(x.device)
        return (self._with(x) - self._without(x)).to(output.dtype)


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a norm."""
    return "norm" in type(layer).__name__.lower() and not any(True for _ in layer.children())


def _twin(norm: nn.Module) -> nn.Module:
    """Return a norm like another one whose scale and bias are zero, without hooks."""
    zeros = {
        id(p): nn.Parameter(torch.zeros(getattr(p, "ds_shape", p.shape), dtype=p.dtype, device=p.device), False)
        for p in norm.parameters()
    }
    twin = copy.deepcopy(norm, dict(zeros))  # ZeRO-3 keeps the shape of a parameter that is elsewhere in `ds_shape`
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    return twin
