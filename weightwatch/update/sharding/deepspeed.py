"""Local shards under DeepSpeed: ZeRO-3 parameters, and the fp32 master weights of ZeRO-1, ZeRO-2 and BF16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weightwatch.update.sharding.local import LocalTensor, Piece, of_range, require_all_processes
from weightwatch.vectors.errors import WeightWatchError


def zero3(name: str, parameter: Any) -> LocalTensor:
    """Return the local shard of a ZeRO-3 parameter: of its fp32 master weights, if an optimizer keeps them.

    Raises:
        WeightWatchError: The shard is quantised or offloaded to NVMe, or not all processes share the parameter.
    """
    group, part = parameter.ds_process_group, parameter.ds_tensor
    require_all_processes(name, "DeepSpeed", torch.distributed.get_world_size(group))
    values = _zero3_master(name, parameter)
    if values is None:
        if hasattr(part, "ds_quant_scale") or part.numel() != part.ds_numel:
            raise _unreadable(name, "quantised (zero_quantized_weights) or offloaded to NVMe")
        values = part
    start = torch.distributed.get_rank(group) * part.ds_numel
    size = max(0, min(part.ds_numel, parameter.ds_numel - start))
    shape = tuple(parameter.ds_shape)
    pieces = of_range(shape, values.flatten()[:size], start)
    return LocalTensor(shape, parameter.dtype, parameter.requires_grad, True, pieces)


def _zero3_master(name: str, parameter: Any) -> Tensor | None:
    """Return the local fp32 master weights of a parameter, padding included; None if no optimizer keeps them."""
    optimizer = getattr(parameter, "_z3_optimizer", None)
    if (
        not parameter.requires_grad
        or optimizer is None
        or optimizer.get_param_id(parameter) not in optimizer.grad_position
    ):
        return None
    if optimizer.swap_optimizer:
        raise _unreadable(name, "in an optimizer offloaded to NVMe")
    # This is safe_get_local_fp32_param without its copy to the device when the optimizer is on the CPU.
    read: Callable[..., tuple[Tensor, int]] = optimizer._get_fp32_opt_state_partition
    return read(parameter, release_swap_buffers=True)[0]


def masters(name: str, parameter: Any) -> LocalTensor:
    """Return the local fp32 master weights that ZeRO-1, ZeRO-2 and DeepSpeed's BF16 optimizer shard.

    Raises:
        WeightWatchError: They are offloaded or are not those of the parameter, or not all processes share it.
    """
    require_all_processes(name, "DeepSpeed", torch.distributed.get_world_size(parameter._dp_group))
    mapping = parameter._hp_mapping
    pieces: tuple[Piece, ...] = ()
    if mapping is not None:
        if mapping.hp_fragment is None:
            raise _unreadable(name, "offloaded (engine.offload_states)")
        start = mapping.lp_fragment_address.start
        _require_masters_of(name, mapping.hp_fragment, parameter.detach().flatten()[start:])
        pieces = of_range(parameter.shape, mapping.hp_fragment, start)
    return LocalTensor(tuple(parameter.shape), parameter.dtype, parameter.requires_grad, True, pieces)


def _require_masters_of(name: str, masters: Tensor, weights: Tensor) -> None:
    """Refuse fp32 masters that differ from the weights in a sample: DeepSpeed's map can be wrong.

    Args:
        name: Name of the parameter, for the message.
        masters: The masters, flat.
        weights: The flat weights from the first master's position on.

    Raises:
        WeightWatchError: They differ by more than a tenth.
    """
    some = slice(None, None, max(1, len(masters) // 256))
    rounded, known = masters.detach()[some].to(weights), weights[: len(masters)][some]
    if not torch.allclose(rounded, known, rtol=0.1, equal_nan=True):
        raise WeightWatchError(
            f"DeepSpeed's fp32 master weights of {name} differ from its weights, as happens with "
            "round_robin_gradients. Set round_robin_gradients to false."
        )


def _unreadable(name: str, state: str) -> WeightWatchError:
    return WeightWatchError(
        f"{name} is {state} by DeepSpeed, so it can't be read. Keep it on the device or in CPU memory."
    )
