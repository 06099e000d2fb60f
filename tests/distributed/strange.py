"""Models that are sharded in unsupported ways. Runs in the processes."""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Shard

from tests.distributed.engines import base, fsdp1, zero


def half_a_mesh() -> nn.Module:
    return _linear(DeviceMesh("cpu", [dist.get_rank()]), Shard(0), 4)


def pending_sums() -> nn.Module:
    return _linear(_mesh(), Partial(), 4)


def wrong_layout() -> nn.Module:
    return _linear(_mesh(), Shard(0), 3 if dist.get_rank() else 5)


def without_its_fsdp_module() -> nn.Module:
    return fsdp1(base("fsdp1")).model.module.model.embed_tokens


def without_its_flat_parameter() -> nn.Module:
    return fsdp1(base("fsdp1"), original=False).model.module


def fsdp_in_one_process_each() -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    linear = nn.Linear(4, 4)
    return nn.Sequential(
        FullyShardedDataParallel(linear, process_group=groups[dist.get_rank()], device_id=torch.device("cpu"))
    )


def megatron() -> nn.Module:
    model = nn.Linear(4, 4)
    model.weight.tensor_model_parallel = True
    return model


def round_robin() -> nn.Module:
    return zero(base("zero2"), stage=2, bf16=True, settings={"round_robin_gradients": True}).model


def offloaded_states() -> nn.Module:
    running = zero(base("zero2"), stage=2, bf16=True)
    for parameter in running.model.parameters():
        if parameter._hp_mapping is not None:
            parameter._hp_mapping.hp_fragment = None  # as engine.offload_states() leaves it
    return running.model


@functools.cache
def _mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _linear(mesh: DeviceMesh, placement: Placement, rows: int) -> nn.Module:
    model = nn.Linear(4, 8, bias=False)
    shape: dict[str, Any] = {"shape": torch.Size([8, 4]), "stride": (4, 1)} if rows != 4 else {}
    local = torch.zeros(rows, 4)
    model.weight = nn.Parameter(DTensor.from_local(local, mesh, [placement], run_check=False, **shape))
    return model
