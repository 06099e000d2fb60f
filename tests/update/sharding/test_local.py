"""Boxes of a tensor, without processes: tests/distributed compares them with the engines."""

import random
from math import prod

import pytest
import torch

from weightwatch.update.sharding.local import Piece, flat_boxes, of_range, require_all_processes, whole, whole_tensor
from weightwatch.vectors import WeightWatchError


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


def test_a_range_is_cut_into_pieces_that_view_its_values() -> None:
    values = torch.arange(5.0)
    pieces = of_range((3, 4), values, 2)
    assert [piece.box for piece in pieces] == [(slice(0, 1), slice(2, 4)), (slice(1, 2), slice(0, 3))]
    assert [piece.values.tolist() for piece in pieces] == [[[0.0, 1.0]], [[2.0, 3.0, 4.0]]]
    assert {piece.values.untyped_storage().data_ptr() for piece in pieces} == {values.untyped_storage().data_ptr()}


def test_a_whole_tensor_is_one_detached_piece() -> None:
    values = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    local = whole_tensor(values, trained=True)
    (piece,) = local.pieces
    assert (local.shape, local.dtype, local.trained, local.sharded) == ((2, 3), torch.bfloat16, True, False)
    assert piece.box == whole((2, 3)) == (slice(0, 2), slice(0, 3))
    assert piece.values.data_ptr() == values.data_ptr()
    assert not piece.values.requires_grad
    assert whole_tensor(torch.tensor(2.0), trained=False).pieces[0].box == ()


def test_other_pieces_leave_the_rest_of_a_tensor_as_it_is() -> None:
    local = whole_tensor(torch.ones(4, 2), trained=True)
    part = local.with_pieces(((slice(1, 3), slice(0, 2)), torch.ones(2, 2)))
    assert (part.shape, part.dtype, part.trained) == (local.shape, local.dtype, local.trained)
    assert [piece.box for piece in part.pieces] == [(slice(1, 3), slice(0, 2))]
    assert local.with_pieces().pieces == ()
    assert isinstance(local.pieces[0], Piece)


def test_a_parameter_on_other_than_all_processes_is_refused(group: None) -> None:
    require_all_processes("w", "FSDP", 1)
    with pytest.raises(WeightWatchError, match=r"w is spread by FSDP over 2 of 1 processes.*mesh of all processes"):
        require_all_processes("w", "FSDP", 2)
