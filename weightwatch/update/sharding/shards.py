"""Which part of each parameter this process holds, under every engine that spreads a model over processes.

The engines' attributes are read here and nowhere else; an engine is imported only where a model can have been made
with it. Nothing is communicated: every process works out its own part.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import unwrapped

Box: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """A box of a tensor that this process has in memory.

    Attributes:
        box: Start and stop per dimension of the whole tensor; ``()`` for a scalar.
        values: Of the box's shape: a detached view, never a copy. Where the engine keeps fp32 masters, the masters.
    """

    box: Box
    values: Tensor


@dataclass(frozen=True)
class Held:
    """What this process holds of one parameter.

    Attributes:
        shape: Shape of the whole tensor.
        dtype: Precision of the model's parameter, also where the values are its fp32 masters.
        trained: Whether it requires a gradient.
        sharded: False where every process holds all of it; ``pieces`` is then one box, the whole.
        pieces: Where sharded, what this process answers for: over all processes each element occurs exactly once.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    trained: bool
    sharded: bool
    pieces: tuple[Piece, ...]

    def holding(self, *parts: tuple[Box, Tensor]) -> "Held":
        """Return the same tensor with other parts of it held here."""
        return replace(self, pieces=tuple(Piece(*part) for part in parts))


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole tensor."""
    return tuple([slice(0, size) for size in shape])


def held(
    model: nn.Module,
    modules: Mapping[str, nn.Module] | None = None,
    parameters: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, Held]:
    """Return what this process holds of each parameter; tied ones once.

    Args:
        model: A model as the engine wrapped it: plain, DDP, FSDP1, FSDP2, tensor parallel, or DeepSpeed ZeRO.
        modules: Its modules by name, if the caller has them: walking through a large model takes its time.
        parameters: What ``named`` says of it, if the caller has that.

    Returns:
        By parameter name as in ``named_parameters()``, without the engine's wrappers but with PEFT's segments.

    Raises:
        WeightWatchError: A parameter is spread over processes in a way that is not known, or over some of them only.
    """
    modules = modules or dict(model.named_modules())
    parameters = parameters or named(model, modules)
    wrappers = list(_fsdp1_modules(modules))
    flat = dict(_flat_parameters(wrappers))
    flattened = {id(module._handle.flat_param) for _, module in wrappers}
    found: dict[str, Held] = {}
    for name, parameter in parameters.items():
        if name in flat:
            found[name] = flat[name]
        elif not getattr(parameter, "_fsdp_flattened", False):
            found[name] = _held(name, parameter)
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
    _reshard(modules)
    return {unwrapped(path): parameter for path, parameter in model.named_parameters()}


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[tuple[Box, slice]]:
    """Return a range of a flattened tensor as boxes of the tensor, at most 2·ndim − 1 of them.

    Args:
        shape: Shape of the whole tensor.
        start: First element of the range, in row-major order.
        stop: The element after the last.

    Returns:
        Each box, with the part of the range (counted from its start) that fills it.
    """
    if start >= stop:
        return []
    if not shape:
        return [((), slice(0, 1))]
    inner = prod(shape[1:])
    (first, skipped), (last, left) = divmod(start, inner), divmod(stop, inner)
    found: list[tuple[Box, slice]] = []

    def within(row: int, begin: int, end: int) -> None:
        before = row * inner + begin - start
        for box, part in flat_boxes(shape[1:], begin, end):
            found.append(((slice(row, row + 1), *box), slice(before + part.start, before + part.stop)))

    if first == last:
        within(first, skipped, left)
        return found
    if skipped:
        within(first, skipped, inner)
        first += 1
    if first < last:
        found.append(((slice(first, last), *whole(shape[1:])), slice(first * inner - start, last * inner - start)))
    within(last, 0, left)
    return found


def _held(name: str, parameter: Tensor) -> Held:
    if hasattr(parameter, "ds_id"):
        return _zero3(name, parameter)
    if getattr(parameter, "tensor_model_parallel", False) or type(parameter).__name__ == "ShardedTensor":
        raise WeightWatchError(
            f"{name} is split by Megatron, DeepSpeed's AutoTP or a ShardedTensor, and which part this process holds is "
            "not known. Train with FSDP, DeepSpeed ZeRO, or the tensor parallelism of transformers (tp_plan)."
        )
    if "torch.distributed.tensor" in sys.modules:
        from torch.distributed.tensor import DTensor

        if isinstance(parameter, DTensor):
            return _dtensor(name, parameter)
    if hasattr(parameter, "_hp_mapping") and parameter.dtype != torch.float32:
        return _masters(name, parameter)
    return _whole(parameter, parameter.requires_grad)


def _whole(values: Tensor, trained: bool) -> Held:
    shape = tuple(values.shape)
    return Held(shape, values.dtype, trained, False, (Piece(whole(shape), values.detach()),))


def _of_range(shape: Sequence[int], values: Tensor, start: int) -> tuple[Piece, ...]:
    """Return the pieces that a range of the flattened tensor consists of: ``values``, from element ``start`` on."""
    values = values.detach()
    return tuple(
        Piece(box, values[part].view([side.stop - side.start for side in box]))
        for box, part in flat_boxes(shape, start, start + values.numel())
    )


def _require_all_processes(name: str, engine: str, covered: int) -> None:
    """Refuse groups that are not the whole world: whether the others hold replicas or other weights is not known."""
    world = torch.distributed.get_world_size()
    if covered != world:
        raise WeightWatchError(
            f"{name} is spread by {engine} over {covered} of {world} processes, and what the others hold is not known "
            "(expert, pipeline and model parallelism are not supported). Use one group or mesh of all processes."
        )


# --- DTensor: FSDP2, tensor parallelism, both at once ---


def _reshard(modules: Mapping[str, nn.Module]) -> None:
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FSDPModule

        for module in modules.values():
            if isinstance(module, FSDPModule):
                module.reshard()


def _dtensor(name: str, parameter: Any) -> Held:
    mesh, shape = parameter.device_mesh, tuple(parameter.shape)
    root = mesh._get_root_mesh() if hasattr(mesh, "_get_root_mesh") else mesh
    _require_all_processes(name, "a DTensor", max(root.size(), mesh.size()))
    names = root.mesh_dim_names or ()
    if "pp" in names and root.size(names.index("pp")) > 1:
        raise WeightWatchError(
            f"{name} is one stage's in pipeline parallelism, which is not supported. Train with FSDP or tp_plan."
        )
    local = parameter.detach().to_local()
    kinds = [_split_of(name, placement) for placement in parameter.placements]
    if all(kind is None for kind in kinds):
        return _whole(local, parameter.requires_grad)
    where = mesh.get_coordinate()
    _require_default_order(name, parameter)
    rows = [
        _index(name, size, [(mesh.size(m), kind[1], where[m]) for m, kind in enumerate(kinds) if kind and kind[0] == d])
        for d, size in enumerate(shape)
    ]
    if tuple(map(len, rows)) != tuple(local.shape):
        raise WeightWatchError(
            f"{name} has a local part of shape {tuple(local.shape)} where {parameter.placements} of {shape} gives "
            f"{tuple(map(len, rows))}: the DTensor was made of parts that do not match its layout. Make it with "
            "distribute_tensor, fully_shard or tp_plan."
        )
    # Of replicas one answers: coordinate 0 of the mesh, and of several meshes alike the one with process 0.
    replica = [where[m] for m, kind in enumerate(kinds) if kind is None]
    answers = not any(replica) and bool((mesh.mesh == 0).any())
    runs = product(*map(_runs, rows)) if answers and local.numel() else ()
    pieces = tuple(Piece(tuple(box for box, _ in run), local[tuple(part for _, part in run)]) for run in runs)
    return Held(shape, parameter.dtype, parameter.requires_grad, True, pieces)


def _split_of(name: str, placement: Any) -> tuple[int, int] | None:
    """Return the dimension that a placement splits and into how many groups first; None where it replicates."""
    kind = type(placement).__name__
    if kind == "Replicate":
        return None
    if kind in ("Shard", "_StridedShard"):
        return placement.dim, int(getattr(placement, "split_factor", 1))
    raise WeightWatchError(
        f"{name} is a DTensor placed as {placement!r}, which is not a weight's. Redistribute it first."
    )


def _require_default_order(name: str, parameter: Any) -> None:
    order = getattr(parameter._spec, "shard_order", None) or ()
    if any(tuple(entry.mesh_dims) != tuple(sorted(entry.mesh_dims)) for entry in order):
        raise WeightWatchError(
            f"{name} is a DTensor split in the order {order}, which is not supported. Redistribute it to the default."
        )


def _index(name: str, size: int, splits: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return which indices of one dimension are here.

    Args:
        name: Of the parameter, for messages.
        size: Of the dimension.
        splits: Number of parts, number of groups first, and part of this process: per mesh dimension that splits it.
    """
    index = torch.arange(size)
    if len(splits) > 1 and any(groups > 1 for _, groups, _ in splits):
        # FSDP over tensor parallelism: what looks interleaved from the outer split is a plain split of the inner's.
        (count, groups, here), *inner = splits
        if groups != prod(n for n, _, _ in inner) or any(g > 1 for _, g, _ in inner):
            raise WeightWatchError(
                f"{name} is split in several strides, which is not known. Use FSDP over an unfused tensor-parallel "
                "layer, or one of the two."
            )
        splits = [*inner, (count, 1, here)]
    for count, groups, here in splits:
        index = torch.cat([_chunk(group, count, here) for group in (_chunk(index, groups, g) for g in range(groups))])
    return index


def _chunk(index: Tensor, count: int, which: int) -> Tensor:
    size = -(-len(index) // count)
    return index[which * size : (which + 1) * size]


def _runs(index: Tensor) -> list[tuple[slice, slice]]:
    """Return the runs of consecutive indices: where they are in the whole, and where among those held."""
    ends = [*((index.diff() != 1).nonzero().flatten() + 1).tolist(), len(index)]
    starts = [0, *ends[:-1]]
    return [(slice(int(index[a]), int(index[b - 1]) + 1), slice(a, b)) for a, b in zip(starts, ends, strict=True)]


# --- FSDP1: parameters flattened into one per module ---


def _fsdp1_modules(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Any]]:
    """Yield FSDP1's wrappers that have parameters of their own, with their paths."""
    if "torch.distributed.fsdp" in sys.modules:
        from torch.distributed.fsdp import FullyShardedDataParallel

        for path, module in modules.items():
            if isinstance(module, FullyShardedDataParallel) and module._handle is not None:
                yield path, module


def _flat_parameters(wrappers: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Held]]:
    """Yield what is held of the parameters that FSDP1 has flattened, whether or not they still show in the model."""
    for path, module in wrappers:
        handle = module._handle
        flat = handle.flat_param
        replicas = getattr(module, "_inter_node_pg", None)
        covered = handle.process_group.size() * (replicas.size() if replicas else 1)
        _require_all_processes(unwrapped(f"{path}.{flat._fqns[0]}".lstrip(".")), "FSDP", covered)
        answers = replicas is None or replicas.rank() == 0
        shard = getattr(flat, "_local_shard", flat.data)  # its own memory while the gathered weights are in use
        originals = flat._params or [flat] * len(flat._fqns)
        for fqn, shape, info, original in zip(
            flat._fqns, flat._shapes, flat._shard_param_infos, originals, strict=True
        ):
            name = unwrapped(f"{path}.{fqn}".lstrip("."))
            values = shard[:0]
            if info.in_shard:
                values = shard[info.offset_in_shard : info.offset_in_shard + info.numel_in_shard]
            if not handle.uses_sharded_strategy:
                yield name, _whole(values.reshape(shape), original.requires_grad)
                continue
            pieces = _of_range(shape, values, info.intra_param_start_idx) if answers and info.in_shard else ()
            yield name, Held(tuple(shape), shard.dtype, original.requires_grad, True, pieces)


# --- DeepSpeed ---


def _zero3(name: str, parameter: Any) -> Held:
    group, part = parameter.ds_process_group, parameter.ds_tensor
    _require_all_processes(name, "DeepSpeed", torch.distributed.get_world_size(group))
    values = _zero3_master(name, parameter)
    if values is None:
        if hasattr(part, "ds_quant_scale") or part.numel() != part.ds_numel:
            raise _unreadable(name, "quantised (zero_quantized_weights) or offloaded to NVMe")
        values = part
    start = torch.distributed.get_rank(group) * part.ds_numel
    size = max(0, min(part.ds_numel, parameter.ds_numel - start))
    shape = tuple(parameter.ds_shape)
    pieces = _of_range(shape, values.flatten()[:size], start)
    return Held(shape, parameter.dtype, parameter.requires_grad, True, pieces)


def _zero3_master(name: str, parameter: Any) -> Tensor | None:
    """Return the optimizer's own part of a parameter, padding included; None where no optimizer has it."""
    optimizer = getattr(parameter, "_z3_optimizer", None)
    if (
        not parameter.requires_grad
        or optimizer is None
        or optimizer.get_param_id(parameter) not in optimizer.grad_position
    ):
        return None
    if optimizer.swap_optimizer:
        raise _unreadable(name, "in an optimizer offloaded to NVMe")
    # As safe_get_local_fp32_param does, but without its copy to the device where the optimizer is on the CPU.
    read: Callable[..., tuple[Tensor, int]] = optimizer._get_fp32_opt_state_partition
    return read(parameter, release_swap_buffers=True)[0]


def _masters(name: str, parameter: Any) -> Held:
    """Read the fp32 masters that ZeRO-1, ZeRO-2 and DeepSpeed's BF16 optimizer divide among the processes."""
    _require_all_processes(name, "DeepSpeed", torch.distributed.get_world_size(parameter._dp_group))
    mapping = parameter._hp_mapping
    pieces: tuple[Piece, ...] = ()
    if mapping is not None:
        if mapping.hp_fragment is None:
            raise _unreadable(name, "offloaded (engine.offload_states)")
        start = mapping.lp_fragment_address.start
        _require_masters_of(name, mapping.hp_fragment, parameter.detach().flatten()[start:])
        pieces = _of_range(parameter.shape, mapping.hp_fragment, start)
    return Held(tuple(parameter.shape), parameter.dtype, parameter.requires_grad, True, pieces)


def _require_masters_of(name: str, masters: Tensor, weights: Tensor) -> None:
    """Refuse masters that aren't the weights', by a sample: under round_robin_gradients DeepSpeed's map is wrong."""
    some = slice(None, None, max(1, len(masters) // 256))
    rounded, known = masters.detach()[some].to(weights), weights[: len(masters)][some]
    if not torch.allclose(rounded, known, rtol=0.1, equal_nan=True):
        raise WeightWatchError(
            f"What DeepSpeed gives for the fp32 masters of {name} are not its weights, as happens under "
            "round_robin_gradients. Set that to false."
        )


def _unreadable(name: str, state: str) -> WeightWatchError:
    return WeightWatchError(
        f"{name} is {state} by DeepSpeed, where it can't be read. Keep it in memory, or on the CPU."
    )
