"""Every adapter that PEFT has: its true effect on the weights is measured, or it is refused by name."""

import copy
import warnings
from collections.abc import Iterable, Iterator

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests import reference as slow
from tests.adapters import EXACT, EXPERTS, FACTORS, MERGED, RESCALED, Case
from tests.models import dense, low_rank, move, starts
from weightwatch.change import Merged, Rescaled
from weightwatch.monitor import Monitor
from weightwatch.reference import Reference
from weightwatch.update import Update
from weightwatch.vectors import Direction, LowRank

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=EXACT)
def exact(request: pytest.FixtureRequest) -> Iterator[Case]:
    case = EXACT[request.param]
    pytest.importorskip(case.needs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield case


def directions(model: nn.Module, names: Iterable[str]) -> list[Direction]:
    """Return directions of both kinds on the base beneath a model: those that have one of some tensors."""
    plain = copy.deepcopy(model).unload()
    made = [dense(plain, 6, name="dense"), dense(plain, 8, name="noise", kind="control")]
    if any(isinstance(module, nn.Linear | nn.Embedding | Conv1D) for module in plain.modules()):
        made += [low_rank(plain, 5), low_rank(plain, 7, name="style", kind="control", rank=2)]
    return [direction for direction in made if not direction.deltas.keys().isdisjoint(names)]


@pytest.mark.parametrize("begun", [False, True], ids=["anew", "continued"])
def test_every_figure_is_that_of_the_fp64_reference(exact: Case, begun: bool) -> None:
    model = exact.build()
    if begun:
        move(model, seed=9, size=0.2)
    start = copy.deepcopy(model)
    reference = Reference(adapters=starts(model))
    move(model, seed=3)
    want = slow.expected(model, start)
    watched = directions(model, want.trained)
    reading = Monitor(watched, reference=reference).measure(model)
    slow.assert_reading(reading, want, watched, rel=2e-5, abs=1e-6)


def test_each_is_measured_in_the_way_that_the_table_says(exact: Case) -> None:
    model = exact.build()
    kinds = {type(change) for change in Update(model).values()}
    assert {FACTORS: LowRank, RESCALED: Rescaled, MERGED: Merged, EXPERTS: Merged}[exact.how] in kinds
    assert kinds <= {LowRank, Merged} or exact.how == RESCALED
