"""Local shards of each parameter, under every engine that spreads a model over processes.

Nothing is communicated: every process works out its own shards. An engine is imported only where a model can have been
made with it.
"""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightwatch.update.sharding.deepspeed import masters, zero3
from weightwatch.update.sharding.dtensor import dtensor, reshard
from weightwatch.update.sharding.fsdp1 import flat_parameters, fsdp1_modules
from weightwatch.update.sharding.local import LocalTensor, whole_tensor
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import unwrapped


def local_parameters(
    modules: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]
) -> dict[str, LocalTensor]:
    """Return the local shards of each parameter; tied ones once.

    Args:
        modules: All modules of a model by name: plain, DDP, FSDP1, FSDP2, tensor parallel, or DeepSpeed ZeRO.
        parameters: Its parameters, as ``named`` returns them.

    Returns:
        By parameter name as in ``named_parameters()``, without the engine's wrappers but with PEFT's segments.

    Raises:
        WeightWatchError: A parameter is spread over processes in an unknown way, or over some of them only.
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
                f"{name} is flattened by FSDP, and what it was made of is not known here: its FSDP module is not "
                "within the model. Measure the model that FSDP returned, not a module inside it."
            )
    return found | flat


def named(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters of a model, tied ones once, by their names without the engine's wrappers.

    FSDP2 modules that still keep their gathered weights after a forward pass are resharded first: the parameters are
    others then.

    Args:
        model: The model.
        modules: Its modules by name.
    """
    reshard(modules)
    return {unwrapped(path): parameter for path, parameter in model.named_parameters()}


def _local(name: str, parameter: Tensor) -> LocalTensor:
    if hasattr(parameter, "ds_id"):
        return zero3(name, parameter)
    if getattr(parameter, "tensor_model_parallel", False) or type(parameter).__name__ == "ShardedTensor":
        raise WeightWatchError(
            f"{name} is split by Megatron, DeepSpeed's AutoTP or a ShardedTensor, and which part this process holds is "
            "not known. Train with FSDP, DeepSpeed ZeRO, or the tensor parallelism of transformers (tp_plan)."
        )
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(parameter, DTensor):
            return dtensor(name, parameter)
    if hasattr(parameter, "_hp_mapping") and parameter.dtype != torch.float32:
        return masters(name, parameter)
    return whole_tensor(parameter, parameter.requires_grad)
