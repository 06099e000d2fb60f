"""Local shards of each parameter, under every supported engine.

Each process finds its own shards without communication. An engine is imported only if it is loaded already.
"""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightwatch.update.sharding.deepspeed import masters, zero3
from weightwatch.update.sharding.dtensor import dtensor, reshard
from weightwatch.update.sharding.fsdp1 import flat_parameters, fsdp1_modules, reshard_flat
from weightwatch.update.sharding.local import LocalTensor, whole_tensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import unwrapped

_MARKS = {"ds_id", "_hp_mapping", "tensor_model_parallel", "_fsdp_flattened"}
"""Attributes by which an engine marks an ordinary parameter that it shards, or of which it has the masters."""


def local_parameters(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]
) -> dict[str, LocalTensor]:
    """Return the local shards of each parameter of a model.

    Args:
        modules: The model's modules by name, at least those of FSDP1. The model is plain or under DDP, FSDP1, FSDP2,
            tensor parallelism or DeepSpeed ZeRO.
        parameters: Its parameters, as ``named`` returns them.

    Returns:
        Local shards by parameter name.

    Raises:
        WeightWatchError: A parameter is sharded in an unknown way, or over some of the processes only.
    """
    wrappers = list(fsdp1_modules(modules))
    flat = dict(flat_parameters(wrappers))
    flattened = {id(module._handle.flat_param) for _, module in wrappers}
    found: dict[str, LocalTensor] = {}
    for name, parameter in parameters.items():
        if name in flat:
            found[name] = flat[name]
        elif not getattr(parameter, "_fsdp_flattened", False):
            found[name] = _local(name, parameter)
        elif id(parameter) not in flattened:
            raise WeightWatchError(
                f"{name} is flattened by FSDP, and the parameters in it are not known: its FSDP module is not part of "
                "the model. Measure the model that FSDP returned, not a module inside it."
            )
    return found | flat


def named(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters of a model by name. A tied parameter has its first name only.

    Names are those of ``named_parameters()`` without the segments that engines add; PEFT's segments stay. FSDP2 modules
    that still have their gathered weights after a forward pass are resharded first, which replaces their parameters.

    Args:
        model: The model.
        modules: Its modules by name.
    """
    reshard(modules.values())
    return {unwrapped(path): parameter for path, parameter in model.named_parameters()}


def reshard_all(model: nn.Module) -> None:
    """Reshard what FSDP still has gathered after a forward pass, so that its next one sees changes of the shards."""
    modules = dict(model.named_modules())
    reshard(modules.values())
    reshard_flat(modules)


def _local(name: str, parameter: Tensor) -> LocalTensor:
    if type(parameter) is nn.Parameter and _MARKS.isdisjoint(vars(parameter)):
        return whole_tensor(parameter, parameter.requires_grad)
    if hasattr(parameter, "ds_id"):
        return zero3(name, parameter)
    if getattr(parameter, "tensor_model_parallel", False) or type(parameter).__name__ == "ShardedTensor":
        raise WeightWatchError(
            f"{name} is split by Megatron, DeepSpeed's AutoTP or a ShardedTensor, and its local shard is not known. "
            "Train with FSDP, DeepSpeed ZeRO, or the tensor parallelism of transformers (tp_plan)."
        )
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(parameter, DTensor):
            return dtensor(name, parameter)
    if hasattr(parameter, "_hp_mapping") and parameter.dtype != torch.float32:
        return masters(name, parameter)
    return whole_tensor(parameter, parameter.requires_grad)
