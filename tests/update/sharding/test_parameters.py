"""Boxes of a tensor, without processes: tests/distributed asks the engines themselves."""

import random
from math import prod

import pytest
import torch
from torch.distributed.tensor import Shard
from torch.distributed.tensor.placement_types import _StridedShard

from tests.support.models import lora, tiny_llama
from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.dtensor import _index, _runs
from weightwatch.update.sharding.local import flat_boxes
from weightwatch.vectors.weights.reader import Box


def _shapes(count: int, *, dimensions: int = 4) -> list[tuple[int, ...]]:
    generator = random.Random(0)
    return [tuple(generator.randint(1, 7) for _ in range(generator.randint(0, dimensions))) for _ in range(count)]


@pytest.mark.parametrize("shape", _shapes(40))
def test_ranges_of_a_flattened_tensor_cover_each_element_once_in_few_boxes(shape: tuple[int, ...]) -> None:
    generator = random.Random(str(shape))
    numbers = torch.arange(prod(shape))
    for _ in range(25):
        cuts = sorted(generator.choices(range(numbers.numel() + 1), k=generator.randint(0, 4)))
        whole = torch.full(shape, -1)
        for start, stop in zip([0, *cuts], [*cuts, numbers.numel()], strict=True):
            boxes = flat_boxes(shape, start, stop)
            assert len(boxes) <= max(1, 2 * len(shape) - 1)
            for box, part in boxes:
                assert bool((whole[box] == -1).all())
                whole[box] = numbers[start:stop][part].view(whole[box].shape)
        assert torch.equal(whole.flatten(), numbers)


def test_an_empty_range_and_an_empty_tensor_have_no_boxes() -> None:
    assert flat_boxes((3, 4), 5, 5) == []
    assert flat_boxes((3, 0), 0, 0) == []
    assert flat_boxes((), 0, 1) == [((), slice(0, 1))]


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


def test_a_plain_model_is_held_whole_in_its_own_memory() -> None:
    model = lora(tiny_llama())
    parts, parameters = ModelView(model).parameters, dict(model.named_parameters())
    assert parts.keys() == parameters.keys()
    for name, part in parts.items():
        (piece,) = part.pieces
        box: Box = tuple(slice(0, size) for size in parameters[name].shape)
        assert (part.sharded, piece.box, part.trained) == (False, box, parameters[name].requires_grad)
        assert piece.values.data_ptr() == parameters[name].data_ptr()
        assert not piece.values.requires_grad
