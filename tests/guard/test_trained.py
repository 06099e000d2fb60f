"""Shards of a trained parameter: what is cut out of it is where it lies, and put together it is the whole."""

import pytest
import torch
from torch import Tensor, nn

from weightwatch.guard.trained import Shards, Trained, cut
from weightwatch.update.sharding.local import LocalTensor, of_range
from weightwatch.vectors import LowRank, WeightWatchError

WHOLE = torch.arange(15.0).view(3, 5)


def flat(start: int, stop: int) -> tuple[nn.Parameter, LocalTensor]:
    """Return a range of the flattened tensor as a flat parameter, as FSDP1 has it."""
    parameter = nn.Parameter(WHOLE.flatten()[start:stop].clone())
    return parameter, LocalTensor((3, 5), torch.float32, True, True, of_range((3, 5), parameter, start))


def shards(start: int, stop: int, turned: bool = False) -> Trained:
    parameter, tensor = flat(start, stop)
    return Trained(parameter, turned, Shards.of(tensor, parameter))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(0, 15), (3, 13), (6, 8), (4, 4)])
def test_what_the_processes_have_adds_up_to_the_whole_factor(start: int, stop: int, turned: bool) -> None:
    several = [shards(*each, turned) for each in ((0, start), (start, stop), (stop, 15))]
    whole = sum((each.filled(each.values) for each in several), torch.zeros(()))
    assert torch.equal(whole, WHOLE.T if turned else WHOLE)
    assert {each.shape for each in several} == {(3, 5)}


@pytest.mark.parametrize("turned", [False, True])
def test_a_change_of_the_whole_is_cut_as_the_shards_are(turned: bool) -> None:
    trained = shards(3, 13, turned)
    change = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    moment = torch.zeros(10)
    for into in (trained.values, moment):
        parts = trained.parts(change.T if turned else change)
        for piece, part in zip(trained.pieces(into), parts, strict=True):
            piece.add_(part)
    assert torch.equal(trained.parameter.detach(), WHOLE.flatten()[3:13] + change.flatten()[3:13])
    assert torch.equal(moment, change.flatten()[3:13])


def test_what_is_laid_out_in_another_way_is_not_cut() -> None:
    trained = shards(3, 13)
    assert trained.shards is not None
    for other in (torch.zeros(11), torch.zeros(2, 5), torch.zeros(20)[::2]):
        assert not trained.shards.fit(other)
        with pytest.raises(WeightWatchError, match="Let the guard act right after the optimizer's step"):
            trained.pieces(other)


def test_what_lies_elsewhere_is_no_shard_of_a_parameter() -> None:
    parameter, tensor = flat(3, 13)
    assert Shards.of(tensor, nn.Parameter(parameter.detach().clone())) is None


@pytest.mark.parametrize("transposed", [False, True])
def test_a_direction_is_cut_in_factors(transposed: bool) -> None:
    w = LowRank(torch.randn(3, 2), torch.randn(2, 5), transposed=transposed, scale=0.5)
    box = (slice(1, 3), slice(0, 2))
    found = cut(w, box)
    assert isinstance(found, LowRank)
    assert torch.allclose(found.dense(), w.dense()[box])
    assert torch.equal(_as_tensor(cut(w.dense(), box)), w.dense()[box])


def _as_tensor(change: Tensor | LowRank) -> Tensor:
    assert isinstance(change, Tensor)
    return change
