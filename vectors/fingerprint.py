"""Telling whether a direction belongs to a model: a few sampled weights of its base, kept with the direction."""

from collections.abc import Callable, Iterable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

_TENSORS = 32
_VALUES = 16
_TOLERANCE = 2.0**-8
_AGREE = 0.9


class Fingerprint(BaseModel):
    """Sampled weights of a base model.

    Up to 32 tensors spread over the model, 16 evenly spaced values of each. Values, not hashes, since the same base is
    loaded in fp32, bf16 or fp16: two values agree within a relative 2^-8, and two models when 9 of 10 values do.

    Attributes:
        shapes: Shape of each sampled tensor, by parameter name.
        values: Its sampled values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shapes: dict[str, tuple[int, ...]]
    values: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, names: Iterable[str], read: Callable[[str], Tensor]) -> "Fingerprint":
        """Take the fingerprint of a model.

        Args:
            names: Parameter names to choose from; the same names give the same choice.
            read: Gives the tensor of a name.
        """
        ordered = sorted(names)
        stride = max(1, -(-len(ordered) // _TENSORS))
        chosen = {name: read(name) for name in ordered[::stride]}
        return cls(
            shapes={name: tuple(tensor.shape) for name, tensor in chosen.items()},
            values={name: _sample(tensor) for name, tensor in chosen.items()},
        )

    def mismatch(self, read: Callable[[str], Tensor | None]) -> str | None:
        """Compare with a model at hand.

        Args:
            read: Gives the model's tensor of a name; None where the model has the tensor but its values can't be
                read (quantised); raises KeyError where the model has no such tensor.

        Returns:
            None if the model may be the base, else what differs, in words.
        """
        agreed = total = 0
        for name, shape in self.shapes.items():
            try:
                tensor = read(name)
            except KeyError:
                return f"the model has no {name}"
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                return f"{name} has shape {tuple(tensor.shape)} where the direction's base has {shape}"
            ours = torch.tensor(self.values[name])
            theirs = torch.tensor(_sample(tensor))
            agreed += int(torch.isclose(ours, theirs, rtol=_TOLERANCE, atol=1e-6).sum())
            total += len(ours)
        if agreed < _AGREE * total:
            return f"only {agreed} of {total} sampled weights agree"
        return None


def _sample(tensor: Tensor) -> tuple[float, ...]:
    flat = tensor.detach().reshape(-1)
    where = torch.linspace(0, max(0, flat.numel() - 1), min(_VALUES, flat.numel()), dtype=torch.float64).long()
    return tuple(round(value, 8) for value in flat[where.to(flat.device)].float().tolist())
