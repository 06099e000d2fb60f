"""Local shards under FSDP1, which flattens the parameters of a module into one."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from weightwatch.update.sharding.local import LocalTensor, of_range, require_all_processes, whole_tensor
from weightwatch.vectors.weights.names import unwrapped


def fsdp1_modules(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    """Yield the path and the module of each FSDP1 wrapper that has parameters of its own."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FullyShardedDataParallel

        for path, module in modules.items():
            if isinstance(module, FullyShardedDataParallel) and module._handle is not None:
                yield path, module


def reshard_flat(modules: Mapping[str, nn.Module]) -> None:
    """Reshard FSDP1 modules that still have their gathered weights after a forward pass."""
    for _, module in fsdp1_modules(modules):
        handle = module._handle
        if handle.uses_sharded_strategy and hasattr(handle.flat_param, "_local_shard"):  # it has run once
            from torch.distributed.fsdp._runtime_utils import _reshard

            _reshard(module, handle, True)


def flat_parameters(wrappers: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, LocalTensor]]:
    """Yield the name and the local shards of each flattened parameter, with ``use_orig_params`` or without."""
    for path, module in wrappers:
        handle = module._handle
        flat = handle.flat_param
        replicas = getattr(module, "_inter_node_pg", None)
        covered = handle.process_group.size() * (replicas.size() if replicas else 1)
        require_all_processes(unwrapped(f"{path}.{flat._fqns[0]}".lstrip(".")), "FSDP", covered)
        counts = replicas is None or replicas.rank() == 0  # only one replica counts
        shard = getattr(flat, "_local_shard", flat.data)  # separate memory while the gathered weights are in use
        originals = flat._params or [flat] * len(flat._fqns)
        for fqn, shape, info, original in zip(
            flat._fqns, flat._shapes, flat._shard_param_infos, originals, strict=True
        ):
            name = unwrapped(f"{path}.{fqn}".lstrip("."))
            values = shard[:0]
            if info.in_shard:
                values = shard[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard]
            if not handle.uses_sharded_strategy:
                yield name, whole_tensor(values.reshape(shape), original.requires_grad)
                continue
            boxes = of_range(shape, values, info.intra_param_start_idx) if info.in_shard else ()
            pieces, copies = (boxes, ()) if counts else ((), boxes)
            yield name, LocalTensor(tuple(shape), shard.dtype, original.requires_grad, True, pieces, copies)
