"""Sums of DoRA and of changes that are full tensors, against fp64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from weightwatch.measure.other_adapters import figures, freedom, is_full
from weightwatch.update.change import Difference, Merged, Rescaled, Rescaling, Streamed
from weightwatch.update.sharding.local import whole_tensor
from weightwatch.vectors import LowRank

OUT, INTO, RANK = 6, 9, 2
DRAWN = torch.Generator().manual_seed(0)
ROWS, WEIGHT = torch.randn(OUT, generator=DRAWN), torch.randn(OUT, INTO, generator=DRAWN)
LEFT, RIGHT = torch.randn(OUT, RANK, generator=DRAWN), torch.randn(RANK, INTO, generator=DRAWN)


def rescaled(transposed: bool) -> Rescaled:
    factors = LowRank(torch.ones(OUT, RANK), RIGHT)
    return Rescaled(factors, lambda: Rescaling(ROWS, LEFT, WEIGHT), transposed)


def directions(transposed: bool) -> list[LowRank | Tensor]:
    shape = (INTO, OUT) if transposed else (OUT, INTO)
    left, right = torch.randn(shape[0], 3), torch.randn(3, shape[1])
    return [torch.randn(shape), LowRank(left, right), LowRank(right.T.contiguous(), left.T.contiguous(), True)]


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_is_measured_row_by_row(transposed: bool) -> None:
    tau = ROWS.double()[:, None] * WEIGHT.double() + LEFT.double() @ RIGHT.double()
    ws = directions(transposed)
    own, inner, reached = figures(rescaled(transposed), list(enumerate(ws)))
    assert float(own) == pytest.approx(float(tau.square().sum()), rel=1e-5)
    for w, along, seen in zip(ws, inner, reached, strict=True):
        full = (w.dense() if isinstance(w, LowRank) else w).double()
        full = full.T if transposed else full
        assert float(along) == pytest.approx(float((tau * full).sum()), rel=1e-5)
        spans = [torch.cat([RIGHT, row[None]]).double() for row in WEIGHT]  # a row can move along R and along itself
        parts = [row @ torch.linalg.pinv(span) @ span for row, span in zip(full, spans, strict=True)]
        assert float(seen) == pytest.approx(float(torch.stack(parts).square().sum()), rel=1e-5)


def test_a_change_that_is_computed_in_full_is_summed_in_full() -> None:
    tau = torch.randn(OUT, INTO, dtype=torch.float64)
    ws = directions(transposed=False)
    own, inner, _ = figures(Merged((OUT, INTO), lambda: tau), list(enumerate(ws)))
    assert float(own) == pytest.approx(float(tau.square().sum()), rel=1e-6)
    want = [float((tau * (w.dense() if isinstance(w, LowRank) else w).double()).sum()) for w in ws]
    assert torch.stack(inner).tolist() == pytest.approx(want, rel=1e-5)


def test_free_elements_are_those_that_training_can_choose() -> None:
    none = partial(torch.zeros, OUT, INTO)
    local = whole_tensor(torch.zeros(OUT, INTO), True)
    assert freedom(None) == 0
    assert freedom(LowRank(LEFT, RIGHT)) == OUT * RANK
    assert freedom(LowRank(LEFT, RIGHT, limited="left")) == RANK * INTO
    assert freedom(rescaled(transposed=False)) == OUT * RANK + OUT
    for change in (Merged((OUT, INTO), none), Difference(local, none), Streamed((OUT, INTO), none, none)):
        assert freedom(change) == OUT * INTO
        assert is_full(change)
    assert not is_full(LowRank(LEFT, RIGHT))
    assert not is_full(rescaled(transposed=False))
