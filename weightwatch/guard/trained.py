"""A trained parameter as a guard changes it: whole, or the shards of it that this process has.

What an optimizer keeps of a sharded parameter is sharded as the parameter is, so both are cut in the same way.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightwatch.update.sharding.local import LocalTensor, whole
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.weights.reader import Box


@dataclass(frozen=True)
class Shards:
    """Where the boxes of a sharded tensor lie in the memory of its local part.

    Attributes:
        tensor: The tensor when the guard began.
        layout: Shape and stride of its local part.
        boxes: The boxes that this process has, those of a replica included.
        places: Size, stride and offset of each box in the local part.
    """

    tensor: LocalTensor
    layout: tuple[tuple[int, ...], tuple[int, ...]]
    boxes: Sequence[Box]
    places: Sequence[tuple[Sequence[int], Sequence[int], int]]

    @classmethod
    def of(cls, tensor: LocalTensor, parameter: nn.Parameter) -> "Shards | None":
        """Return the shards of a parameter; None if they are not in its own memory."""
        found = local(parameter)
        pieces = [*tensor.pieces, *tensor.copies]
        memory = found.untyped_storage().data_ptr()
        if any(piece.values.untyped_storage().data_ptr() != memory for piece in pieces):
            return None
        first = found.storage_offset()
        places = [(p.values.shape, p.values.stride(), int(p.values.storage_offset()) - int(first)) for p in pieces]
        return cls(tensor, _layout(found), [piece.box for piece in pieces], places)

    def fit(self, part: Tensor) -> bool:
        """Whether a tensor has the layout of the local part."""
        return _layout(part) == self.layout

    def cut(self, part: Tensor) -> list[Tensor]:
        """Return views of the boxes in a local part.

        Raises:
            WeightWatchError: The part has another shape than when the guard began.
        """
        if not self.fit(part):
            raise WeightWatchError(
                f"The local part of a sharded weight has shape {tuple(part.shape)}, and had {self.layout[0]} when the "
                "guard began. Let the guard act right after the optimizer's step, when the weights are sharded."
            )
        return [part.as_strided(size, stride, part.storage_offset() + at) for size, stride, at in self.places]


@dataclass(frozen=True)
class Trained:
    """A trained parameter, in the orientation in which it is a factor.

    Attributes:
        parameter: The parameter.
        turned: Whether the factor is its transpose.
        shards: Its shards on this process; None if it is whole.
        counts: Whether this process counts it in sums, and no other the same elements.
    """

    parameter: nn.Parameter
    turned: bool = False
    shards: Shards | None = None
    counts: bool = True

    @classmethod
    def of(cls, name: str, parameter: nn.Parameter | None, tensor: LocalTensor, main: bool) -> "Trained":
        """Return a parameter of a weight, with its shards.

        Args:
            name: Name of the weight, for messages.
            parameter: The parameter; None if it is not one of its own.
            tensor: What this process has of it.
            main: Whether this process counts what is whole on each process.

        Raises:
            WeightWatchError: A change of the parameter would be undone.
        """
        if parameter is None:
            raise WeightWatchError(
                f"{name} is flattened by FSDP together with other weights, which the optimizer then does not see. Set "
                "use_orig_params=True, or train with FSDP2 (fully_shard)."
            )
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
            raise WeightWatchError(
                f"{name} is trained by DeepSpeed ZeRO, which keeps weights of its own (fp32 masters) and would "
                "overwrite what the guard changes. Train with FSDP2 (fully_shard) or DDP, or use `mode: preventative`."
            )
        shards = Shards.of(tensor, parameter)
        if shards is None:
            raise WeightWatchError(
                f"{name} is trained through fp32 master weights that the optimizer keeps, so a change of the weight "
                "itself would be undone. Train with autocast (bf16=True on a model in fp32), or use `mode: "
                "preventative`."
            )
        return (
            cls(parameter, shards=shards, counts=not tensor.copies) if tensor.sharded else cls(parameter, counts=main)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return tuple(self.parameter.shape) if self.shards is None else self.shards.tensor.shape

    @property
    def device(self) -> torch.device:
        """The device of what this process has of it."""
        return self.parameter.device

    @property
    def values(self) -> Tensor:
        """Its local values: a view."""
        return self.oriented(self.parameter)

    @property
    def boxes(self) -> Sequence[Box]:
        """The boxes of the parameter that this process has."""
        return [whole(self.shape)] if self.shards is None else self.shards.boxes

    def oriented(self, tensor: Tensor) -> Tensor:
        """Return a view of a tensor of the parameter's shape, such as a gradient, in the orientation of the factor.

        Of a sharded one it is the local part, as it lies in memory.
        """
        found = local(tensor)
        return self.factor(found) if self.shards is None else found

    def pieces(self, tensor: Tensor) -> list[Tensor]:
        """Cut what ``oriented`` returns into the local boxes."""
        return [tensor] if self.shards is None else self.shards.cut(tensor)

    def filled(self, tensor: Tensor) -> Tensor:
        """Return what ``oriented`` returns as a whole factor in fp32, with zeros where this process has no shard."""
        if self.shards is None:
            return tensor.float()
        full = torch.zeros(self.shape, dtype=torch.float32, device=tensor.device)
        for box, piece in zip(self.boxes, self.pieces(tensor), strict=True):
            full[box] = piece.float()
        return self.factor(full)

    def factor(self, tensor: Tensor) -> Tensor:
        """Return a view of a whole tensor of the parameter's shape in the orientation of the factor."""
        return tensor.T if self.turned else tensor

    def parts(self, change: Tensor) -> list[Tensor]:
        """Cut a change of the whole factor into the local boxes."""
        if self.shards is None:
            return [change]
        return [self.factor(change)[box] for box in self.boxes]

    def local_tensor(self) -> LocalTensor:
        """Return the shards as they are now, for gathering."""
        assert self.shards is not None
        tensor = self.shards.tensor
        boxes = zip(self.boxes, self.pieces(self.values), strict=True) if self.counts else ()
        return tensor.with_pieces(*boxes)


def _layout(part: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(part.shape), part.stride()


def local(tensor: Tensor) -> Tensor:
    """Return the values of a tensor on this process: of a DTensor its local part, of any other itself, detached."""
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor):
            with torch.no_grad():
                return tensor.to_local().detach()
    return tensor.detach()


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return a DTensor placed as a parameter is, and any other tensor as it is. The call is collective.

    SGD takes the first gradient for its momentum, and that can be replicated where the parameter is sharded.
    """
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(tensor, DTensor) and isinstance(parameter, DTensor) and tensor.placements != parameter.placements:
            return tensor.redistribute(parameter.device_mesh, parameter.placements).contiguous()
    return tensor


def cut(w: Delta, box: Box) -> Delta:
    """Return a direction's change of one box of a weight, in the orientation of the weight."""
    if not isinstance(w, LowRank):
        return w[box]
    rows, columns = w.oriented
    return LowRank(rows[box[0]], columns[:, box[1]])
