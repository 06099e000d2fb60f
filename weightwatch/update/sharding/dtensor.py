"""Local shards of DTensors: FSDP2, tensor parallelism, and both together."""

import sys
from collections.abc import Iterable, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from weightwatch.update.sharding.local import LocalTensor, Piece, require_all_processes, whole_tensor
from weightwatch.vectors.errors import WeightWatchError


def reshard(modules: Iterable[nn.Module]) -> None:
    """Reshard FSDP2 modules that still have their gathered weights after a forward pass."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FSDPModule

        for module in modules:
            if isinstance(module, FSDPModule):
                module.reshard()


def dtensor(name: str, parameter: Any) -> LocalTensor:
    """Return the local shards of a DTensor.

    Raises:
        WeightWatchError: Its mesh does not contain all processes, or its placements or its local shape are not those of
            a weight.
    """
    mesh, shape = parameter.device_mesh, tuple(parameter.shape)
    root = mesh._get_root_mesh() if hasattr(mesh, "_get_root_mesh") else mesh
    require_all_processes(name, "a DTensor", max(root.size(), mesh.size()))
    names = root.mesh_dim_names or ()
    if "pp" in names and root.size(names.index("pp")) > 1:
        raise WeightWatchError(
            f"{name} belongs to one stage of a pipeline, and pipeline parallelism is not supported. Train with FSDP or "
            "tp_plan."
        )
    local = parameter.detach().to_local()
    kinds = [_split_of(name, placement) for placement in parameter.placements]
    if all(kind is None for kind in kinds):
        return whole_tensor(local, parameter.requires_grad)
    where = mesh.get_coordinate()
    _require_default_order(name, parameter)
    rows = [
        _index(name, size, [(mesh.size(m), kind[1], where[m]) for m, kind in enumerate(kinds) if kind and kind[0] == d])
        for d, size in enumerate(shape)
    ]
    if tuple(map(len, rows)) != tuple(local.shape):
        raise WeightWatchError(
            f"{name} has a local shard of shape {tuple(local.shape)} where {parameter.placements} of {shape} gives "
            f"{tuple(map(len, rows))}: the DTensor was made of shards that do not match its placements. Create it with "
            "distribute_tensor, fully_shard or tp_plan."
        )
    # Only one replica counts: at coordinate 0 of the mesh, and of several equal meshes in the one with process 0.
    replica = [where[m] for m, kind in enumerate(kinds) if kind is None]
    counts = not any(replica) and bool((mesh.mesh == 0).any())
    runs = product(*map(_runs, rows)) if local.numel() else ()
    boxes = tuple(Piece(tuple(box for box, _ in run), local[tuple(part for _, part in run)]) for run in runs)
    pieces, copies = (boxes, ()) if counts else ((), boxes)
    return LocalTensor(shape, parameter.dtype, parameter.requires_grad, True, pieces, copies)


def _split_of(name: str, placement: Any) -> tuple[int, int] | None:
    """Return the dimension that a placement splits, and the number of groups that are each split; None: replicated."""
    kind = type(placement).__name__
    if kind == "Replicate":
        return None
    if kind in ("Shard", "_StridedShard"):
        return placement.dim, int(getattr(placement, "split_factor", 1))
    raise WeightWatchError(
        f"{name} is a DTensor placed as {placement!r}, which is not supported. Redistribute it first."
    )


def _require_default_order(name: str, parameter: Any) -> None:
    order = getattr(parameter._spec, "shard_order", None) or ()
    if any(tuple(entry.mesh_dims) != tuple(sorted(entry.mesh_dims)) for entry in order):
        raise WeightWatchError(
            f"{name} is a DTensor sharded in the order {order}, which is not supported. Redistribute it in the default "
            "order."
        )


def _index(name: str, size: int, splits: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return the local indices of one dimension.

    Args:
        name: Name of the parameter, for messages.
        size: Size of the dimension.
        splits: For each mesh dimension that splits it: number of parts, number of groups that are each split, and the
            local part.
    """
    index = torch.arange(size, dtype=torch.long, device="cpu")
    if len(splits) > 1 and any(groups > 1 for _, groups, _ in splits):
        # FSDP over tensor parallelism: the outer, strided split is a plain split of each part of the inner one.
        (count, groups, here), *inner = splits
        if groups != prod(n for n, _, _ in inner) or any(g > 1 for _, g, _ in inner):
            raise WeightWatchError(
                f"{name} is split with several strides, which is not supported. Use FSDP over tensor-parallel modules "
                "that are not fused, or only one of the two."
            )
        splits = [*inner, (count, 1, here)]
    for count, groups, here in splits:
        index = torch.cat([_chunk(group, count, here) for group in (_chunk(index, groups, g) for g in range(groups))])
    return index


def _chunk(index: Tensor, count: int, which: int) -> Tensor:
    size = -(-len(index) // count)
    return index[which * size : (which + 1) * size]


def _runs(index: Tensor) -> list[tuple[slice, slice]]:
    """Return the runs of consecutive indices: as slices of the whole dimension, and of the local indices."""
    ends = [*((index.diff() != 1).nonzero().flatten() + 1).tolist(), len(index)]
    starts = [0, *ends[:-1]]
    return [(slice(int(index[a]), int(index[b - 1]) + 1), slice(a, b)) for a, b in zip(starts, ends, strict=True)]
