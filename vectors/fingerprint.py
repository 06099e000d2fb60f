"""Fingerprints of base models: sampled weights that show whether a direction belongs to a model."""

from collections.abc import Callable, Iterable
from math import prod
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator
from torch import Tensor

from weightwatch.vectors.weights.names import indexed, is_resized

_TENSORS = 32
_VALUES = 16
_TOLERANCE = 2.0**-8
_AGREE = 0.9


class Fingerprint(BaseModel):
    """Sampled weights of a base model.

    Up to 32 tensors spread over the model, 16 evenly spaced values of each. They are values, not hashes, since one base
    is loaded in fp32, bf16 or fp16. Two values agree within a relative 2⁻⁸; two models agree if 9 of 10 values do.

    Attributes:
        shapes: Shape of each sampled tensor, by parameter name.
        values: Its sampled values.

    Example:
        >>> base = {"norm.weight": torch.tensor([1.0, 2.0, 3.0])}
        >>> other = {"norm.weight": torch.tensor([1.0, -2.0, 5.0])}
        >>> ours, theirs = (Fingerprint.of(model, model.__getitem__) for model in (base, other))
        >>> ours.differs(theirs)
        'only 1 of 3 sampled weights agree'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shapes: dict[str, tuple[NonNegativeInt, ...]]
    values: dict[str, tuple[float, ...]]

    @model_validator(mode="after")
    def _has_samples(self) -> "Fingerprint":
        """An incomplete fingerprint would fit any base."""
        if not any(self.values.values()):
            raise ValueError("a fingerprint has values of at least one tensor")
        for name in self.shapes.keys() | self.values.keys():
            found, wanted = len(self.values.get(name, ())), _count(self.shapes.get(name, ()))
            if found != wanted:
                raise ValueError(f"a fingerprint has {wanted} values of {name}, not {found}")
        return self

    @classmethod
    def of(cls, names: Iterable[str], read: Callable[[str], Tensor]) -> "Fingerprint":
        """Take the fingerprint of a model.

        Args:
            names: Parameter names to choose from; the same names give the same choice.
            read: Returns the tensor with a name.
        """
        ordered = sorted(names)
        stride = max(1, -(-len(ordered) // _TENSORS))
        chosen = {name: read(name) for name in ordered[::stride]}
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in chosen.items()},
            values={name: _sample(tensor) for name, tensor in chosen.items()},
        )

    def mismatch(self, model: "Theta0") -> str | None:
        """Compare with a model.

        Outside the layers, tensors that the model lacks and resized vocabularies are skipped.

        Args:
            model: Shapes and single values of the model's θ₀.

        Returns:
            The first difference; None if the model may be the base.
        """
        agreed = total = 0
        lacking = None
        for name, shape in self.shapes.items():
            try:
                theirs_shape = model.shape(name)
            except KeyError:
                lacking = f"the model has no {name}"
                if indexed(name):
                    return lacking
                continue  # a model with a score has no language head
            if theirs_shape is None or is_resized(name, shape, theirs_shape):
                continue
            if theirs_shape != shape:
                return f"{name} has shape {theirs_shape} where the direction's base has {shape}"
            theirs = model.values(name, _positions(shape))
            ours = self._sampled(name)
            agreed += _agreeing(ours, theirs)
            total += len(ours)
        if agreed < _AGREE * total:
            return f"only {agreed} of {total} sampled weights agree"
        return None if total else lacking

    def unreadable(self, model: "Theta0") -> bool:
        """Whether no sampled tensor has values in the model that can be read: all are quantised."""
        for name in self.shapes:
            try:
                if model.shape(name) is not None:
                    return False
            except KeyError:
                continue
        return True

    def differs(self, other: "Fingerprint") -> str | None:
        """Compare with the fingerprint of another direction's base.

        Returns:
            The first difference; None if both may be of one base, or have no sampled tensor in common.
        """
        agreed = total = 0
        for name in self.shapes.keys() & other.shapes.keys():
            if self.shapes[name] != other.shapes[name]:
                return f"{name} has shape {self.shapes[name]} in one and {other.shapes[name]} in the other"
            ours, theirs = self._sampled(name), other._sampled(name)
            agreed += _agreeing(ours, theirs)
            total += len(ours)
        if agreed < _AGREE * total:
            return f"only {agreed} of {total} sampled weights agree"
        return None

    def _sampled(self, name: str) -> Tensor:
        return torch.tensor(self.values[name], dtype=torch.float32, device="cpu")

    def joined(self, other: "Fingerprint") -> "Fingerprint":
        """Return the samples of two fingerprints of one base."""
        return Fingerprint(shapes={**self.shapes, **other.shapes}, values={**self.values, **other.values})


class Theta0(Protocol):
    """Shapes and single values of a model's θ₀."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor; None if it is quantised, so that its values can't be read.

        Raises:
            KeyError: There is no tensor of that name.
        """
        ...

    def values(self, name: str, positions: Tensor) -> Tensor:
        """Return the values at some positions of the flattened tensor, in fp32."""
        ...


def _agreeing(ours: Tensor, theirs: Tensor) -> int:
    return int(torch.isclose(ours, theirs, rtol=_TOLERANCE, atol=1e-6).sum())


def _count(shape: tuple[int, ...]) -> int:
    """Return the number of values that are sampled of a tensor."""
    return min(_VALUES, prod(shape))


def _positions(shape: tuple[int, ...]) -> Tensor:
    size, count = prod(shape), _count(shape)
    return torch.linspace(0, max(0, size - 1), count, dtype=torch.float64, device="cpu").long()


def _sample(tensor: Tensor) -> tuple[float, ...]:
    where = _positions(tuple(tensor.shape)).to(tensor.device)
    return tuple(round(value, 8) for value in tensor.detach().reshape(-1)[where].float().tolist())
