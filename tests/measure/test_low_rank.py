"""Factors of many sizes at once against fp64, multiplied out."""

import numpy as np
import pytest
import torch
from torch import Tensor

from weightwatch import Direction
from weightwatch.measure import low_rank
from weightwatch.measure.sums import measure
from weightwatch.vectors import LowRank

OUT, INTO = 12, 9
COUNT = 90


def factors(number: int, rank: int, generator: torch.Generator) -> LowRank:
    """Return random factors for a weight of shape (OUT, INTO), turned, limited and scaled as the number has it."""
    transposed = number % 2 == 1
    rows, columns = (INTO, OUT) if transposed else (OUT, INTO)
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    return LowRank(left, right, transposed, "left" if number % 3 == 0 else "right", 0.25 * (1 + number % 5))


def multiplied_out(delta: LowRank | Tensor) -> Tensor:
    if isinstance(delta, Tensor):
        return delta.double()
    product = delta.scale * delta.left.double() @ delta.right.double()
    return product.T if delta.transposed else product


def projected(w: Tensor, change: LowRank) -> Tensor:
    """Return P(w): on the row space of the right factor, or on the column space of the left one."""
    stored = w.T if change.transposed else w
    if change.limited == "left":
        return change.left.double() @ torch.linalg.pinv(change.left.double()) @ stored
    return stored @ torch.linalg.pinv(change.right.double()) @ change.right.double()


def test_tensors_of_several_ranks_and_scales_are_measured_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    update = {f"layers.{i}.weight": factors(i, 2 + i % 7 // 5, generator) for i in range(COUNT)}
    low = {name: factors(i + i % 4 // 2, 3 + i % 11 // 9, generator) for i, name in enumerate(update)}
    dense = {name: torch.randn(OUT, INTO, generator=generator) for name in list(update)[::4]}
    some = {name: low[name] if i % 2 else dense.get(name, low[name]) for i, name in enumerate(list(update)[5:])}
    directions = [Direction.from_tensors(t, name=n) for n, t in (("low", low), ("dense", dense), ("some", some))]
    sums = measure(update, directions)
    assert sums.names == tuple(update)
    want = np.zeros((COUNT, 7))
    for line, change in zip(want, update.values(), strict=True):
        line[0] = multiplied_out(change).square().sum()
    for k, given in enumerate((low, dense, some)):
        for line, (name, change) in zip(want, update.items(), strict=True):
            if name in given:
                w = multiplied_out(given[name])
                line[1 + k] = (multiplied_out(change) * w).sum()
                line[4 + k] = projected(w, change).square().sum()
    found = np.concatenate([sums.update[:, None], sums.inner, sums.reached], 1)
    assert found == pytest.approx(want, rel=1e-5, abs=1e-5 * np.abs(want).max())
    assert np.array_equal(found == 0, want == 0)


def test_a_direction_has_the_scale_of_what_it_is_made_of_in_its_factors() -> None:
    change = LowRank(torch.ones(4, 1), torch.ones(1, 3), scale=2.0)
    direction = Direction.from_tensors({"a.weight": change}, name="evil")
    (delta,) = direction.deltas.values()
    assert isinstance(delta, LowRank)
    assert delta.scale == 1.0
    assert torch.equal(delta.dense(), change.dense())
    assert direction.norm == pytest.approx(4 * 3**0.5)


def test_small_factors_take_one_thread_large_ones_all_and_the_number_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(3)
    direction = Direction.from_tensors({"w": factors(2, 3, generator)}, name="w")
    seen: list[int] = []
    products = low_rank._products
    monkeypatch.setattr(low_rank, "_products", lambda *given: seen.append(torch.get_num_threads()) or products(*given))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for largest in (low_rank._SMALL, 0):
            monkeypatch.setattr(low_rank, "_SMALL", largest)
            measure({"w": factors(4, 2, generator)}, [direction])
            assert torch.get_num_threads() == 2
        monkeypatch.setattr(low_rank, "_SMALL", OUT * INTO)
        with pytest.raises(RuntimeError):
            measure({"w": LowRank(torch.ones(OUT, 2), torch.ones(3, INTO))}, [direction])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen[:2] == [1, 2]
