"""Sums of fully trained tensors against fp64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests import oracle as slow
from weightwatch.measure import dense
from weightwatch.measure.dense import along, each, tiny, together
from weightwatch.measure.low_rank import Figures, Found
from weightwatch.monitor import Monitor
from weightwatch.update.change import Difference
from weightwatch.update.sharding.local import whole, whole_tensor
from weightwatch.vectors import Direction, LowRank, WeightWatchError
from weightwatch.vectors.weights.reader import Box


def difference(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> tuple[Difference, Tensor]:
    """Return a trained tensor, and its change in fp64."""
    generator = torch.Generator().manual_seed(seed)
    before, now = torch.randn(2, *shape, generator=generator)
    now = now.to(dtype)
    return Difference(whole_tensor(now, True), before.__getitem__), now.double() - before.to(dtype).double()


def full(change: Difference, found: Found) -> Figures:
    """Measure one tensor."""
    ((_, figures),) = each({"": change}, {"": found})
    return figures


def factors(transposed: bool) -> LowRank:
    left, right = torch.randn(6, 2), torch.randn(2, 9)
    return LowRank(right.T.contiguous(), left.T.contiguous(), True) if transposed else LowRank(left, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1 << 19, 20], ids=["one block", "blocks of two rows"])
def test_sums_are_those_of_fp64(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", block)
    change, tau = difference((6, 9), 1, dtype)
    ws = [torch.randn(6, 9), factors(transposed=False), factors(transposed=True)]
    own, inner, reached = full(change, list(enumerate(ws)))
    want = [(tau * (w.dense() if isinstance(w, LowRank) else w).double()).sum() for w in ws]
    assert float(own) == pytest.approx(float(tau.square().sum()), rel=1e-6)
    assert torch.stack(inner).tolist() == pytest.approx([float(x) for x in want], rel=1e-5)
    assert reached == [0, 0, 0]  # the caller knows ‖w‖²


def test_only_the_local_shards_are_measured() -> None:
    change, tau = difference((6, 9), 1)
    box = (slice(1, 3), slice(0, 9))
    part = change.of(change.local.with_pieces((box, change.local.pieces[0].values[box])))
    w = torch.randn(6, 9)
    own, (inner,), _ = full(part, [(0, w)])
    assert float(own) == pytest.approx(float(tau[box].square().sum()), rel=1e-6)
    assert float(inner) == pytest.approx(float((tau * w)[box].sum()), rel=1e-5)
    assert float(full(change.of(change.local.with_pieces()), [(0, w)])[0]) == 0.0


def test_a_start_on_disk_is_read_one_part_ahead_and_measured_as_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_PART", 20)
    changes = {name: difference((rows, 9), rows)[0] for name, rows in [("a", 6), ("b", 1), ("c", 5)]}
    found: dict[str, Found] = {name: [(0, torch.randn(change.shape))] for name, change in changes.items()}
    read: list[tuple[str, int]] = []

    def stored(name: str) -> Difference:
        def start(box: Box) -> Tensor:
            read.append((name, box[0].start))
            return changes[name].start(box)

        return replace(changes[name], start=start, stored=True)

    given, order = each({name: stored(name) for name in changes}, found), []
    for name, (own, inner, _) in given:
        order.append(name)
        want = full(changes[name], found[name])
        assert [float(own), float(inner[0])] == pytest.approx([float(want[0]), float(want[1][0])], rel=1e-6)
    assert order == ["a", "b", "c"]
    assert read == [("a", 0), ("a", 2), ("a", 4), ("b", 0), ("c", 0), ("c", 2), ("c", 4)]


def test_a_start_that_cant_be_read_is_an_error_at_its_tensor() -> None:
    def gone(box: Box) -> Tensor:
        raise WeightWatchError("the file is gone")

    good, bad = difference((6, 9), 1)[0], replace(difference((6, 9), 2)[0], start=gone, stored=True)
    given = each({"good": replace(good, stored=True), "bad": bad}, {"good": [], "bad": []})
    assert next(given)[0] == "good"
    with pytest.raises(WeightWatchError, match="the file is gone"):
        next(given)


def test_small_tensors_are_measured_together_as_each_alone() -> None:
    changes = {name: difference(shape, seed)[0] for seed, (name, shape) in enumerate([("a", (3,)), ("b", (4, 2))])}
    changes["large"] = difference((200, 200), 3)[0]
    found = {name: [(0, torch.randn(change.shape))] for name, change in changes.items()}
    (group,) = tiny(changes, found)
    assert group == ["a", "b"]
    own, (inner,), _ = together([changes[name] for name in group], [found[name] for name in group])
    for line, name in enumerate(group):
        alone = full(changes[name], found[name])
        assert float(own[line]) == pytest.approx(float(alone[0]), rel=1e-6)
        assert float(inner[line]) == pytest.approx(float(alone[1][0]), rel=1e-6)


def test_factors_along_a_block_are_a_sum_over_its_rows() -> None:
    w, tau = factors(transposed=True), torch.randn(6, 9)
    found = sum(float(along(w, tau[i : i + 2], (slice(i, i + 2), slice(0, 9)))) for i in (0, 2, 4))
    assert found == pytest.approx(float((tau.double() * w.dense().double()).sum()), rel=1e-5)
    assert float(along(w, tau, whole((6, 9)))) == pytest.approx(found, rel=1e-6)


def test_a_tensor_whose_rows_are_larger_than_a_block_is_summed_exactly() -> None:
    name, shape = "layers.0.experts", (2, 1 << 10, 1 << 11)  # experts of a mixture: one row is larger than a block
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.ParameterDict({"experts": torch.randn(shape)})])})
    w = Direction.from_tensors({name: torch.randn(shape) + 0.1}, name="w")
    want = slow.Expected({name: slow.Trained(dict(model.named_parameters())[name].detach().double())})
    score = Monitor([w], reference={name: torch.zeros(shape)}).measure(model)["w"]
    answer = want.score([name], slow.dense(w))
    assert score.cosine == pytest.approx(answer.cosine, abs=1e-7)
    assert score.dose == pytest.approx(answer.dose, abs=1e-7)
