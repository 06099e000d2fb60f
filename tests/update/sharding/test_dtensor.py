"""Local indices of a dimension, against torch's own placements: tests/distributed reads real DTensors."""

import random
from math import prod

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from weightwatch.update.sharding.dtensor import _index, _runs, _split_of, dtensor, reshard
from weightwatch.vectors import WeightWatchError


@pytest.mark.parametrize("seed", range(60))
def test_the_parts_of_a_dimension_are_those_that_torch_cuts(seed: int) -> None:
    """Over a mesh of 1 to 3 dimensions, uneven and empty parts included; each index occurs once."""
    generator = random.Random(seed)
    size, mesh = generator.randint(1, 23), [generator.randint(1, 4) for _ in range(generator.randint(1, 3))]
    strided = generator.random() < 0.5
    inner = prod(mesh[1:])
    splits = [(count, inner if strided and i == 0 and len(mesh) > 1 else 1) for i, count in enumerate(mesh)]
    if strided and len(mesh) == 1:
        splits = [(mesh[0], generator.randint(1, 3))]  # a fused layer's: groups that are each cut
    seen = torch.zeros(size, dtype=torch.int)
    for where in _coordinates(mesh):
        index = _index("w", size, [(count, groups, at) for (count, groups), at in zip(splits, where, strict=True)])
        seen[index] += 1
        assert torch.equal(index, _torchs(size, splits, where)) or (strided and len(mesh) > 1 and size % prod(mesh))
        if len(index):
            assert torch.equal(torch.cat([torch.arange(size)[box] for box, _ in _runs(index)]), index)
            assert len(_runs(index)) == 1 or len(mesh) == 1
    assert bool((seen == 1).all())


def _torchs(size: int, splits: list[tuple[int, int]], where: list[int]) -> torch.Tensor:
    """Return the indices that torch's placements leave, from the first mesh dimension to the last."""
    index = torch.arange(size)
    for (count, groups), at in zip(splits, where, strict=True):
        placement = _StridedShard(0, split_factor=groups) if groups > 1 else Shard(0)
        index = placement._split_tensor(index, count, with_padding=False)[0][at]
    return index


def _coordinates(mesh: list[int]) -> list[list[int]]:
    return [list(map(int, row)) for row in torch.cartesian_prod(*map(torch.arange, mesh)).view(-1, len(mesh))]


def test_runs_are_slices_of_the_whole_and_of_the_local_indices() -> None:
    assert _runs(torch.tensor([2, 3, 4, 8, 9])) == [(slice(2, 5), slice(0, 3)), (slice(8, 10), slice(3, 5))]
    assert _runs(torch.tensor([7])) == [(slice(7, 8), slice(0, 1))]


def test_a_placement_is_a_split_of_a_dimension_or_a_replica() -> None:
    assert _split_of("w", Replicate()) is None
    assert _split_of("w", Shard(1)) == (1, 1)
    assert _split_of("w", _StridedShard(0, split_factor=3)) == (0, 3)
    with pytest.raises(WeightWatchError, match=r"w is a DTensor placed as Partial.*Redistribute it first"):
        _split_of("w", Partial())


def test_several_strides_are_refused_by_name() -> None:
    with pytest.raises(WeightWatchError, match="w is split with several strides"):
        _index("w", 12, [(2, 3, 0), (2, 1, 0)])


def test_modules_without_fsdp_have_nothing_to_reshard() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    reshard([module])
    assert module.weight is weight


@pytest.mark.parametrize(("placement", "sharded"), [(Shard(1), True), (Replicate(), False)], ids=str)
def test_a_dtensor_is_read_in_its_own_memory(group: None, placement: Placement, sharded: bool) -> None:
    values = torch.arange(6.0).view(2, 3)
    parameter = nn.Parameter(distribute_tensor(values, init_device_mesh("cpu", (1,)), [placement]))
    local = dtensor("w", parameter)
    (piece,) = local.pieces
    assert (local.shape, local.trained, local.sharded) == ((2, 3), True, sharded)
    assert piece.box == (slice(0, 2), slice(0, 3))
    assert torch.equal(piece.values, values)
    assert piece.values.data_ptr() == parameter.detach().to_local().data_ptr()
