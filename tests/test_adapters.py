"""Every adapter that PEFT has: its true effect on the weights is measured, or it is refused by name."""

import copy
import warnings
from collections.abc import Iterator

import pytest
from torch import nn

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


def directions(model: nn.Module) -> list[Direction]:
    """Return directions of both kinds on all parameters of the base beneath a model."""
    plain = copy.deepcopy(model).unload()
    wide = low_rank(plain, 5)
    controls = [low_rank(plain, 7, name="style", kind="control", rank=2), dense(plain, 8, name="noise", kind="control")]
    return [*([wide] if wide.deltas else []), dense(plain, 6, name="dense"), *(c for c in controls if c.deltas)]


@pytest.mark.parametrize("begun", [False, True], ids=["anew", "continued"])
def test_every_figure_is_that_of_the_fp64_reference(exact: Case, begun: bool) -> None:
    model = exact.build()
    if begun:
        move(model, seed=9, size=0.2)
    start = copy.deepcopy(model)
    reference = Reference(adapters=starts(model))
    move(model, seed=3)
    watched = directions(model)
    reading = Monitor(watched, reference=reference).measure(model)
    slow.assert_reading(reading, slow.expected(model, start), watched, rel=2e-5, abs=1e-6)


def test_each_is_measured_in_the_way_that_the_table_says(exact: Case) -> None:
    model = exact.build()
    kinds = {type(change) for name, change in Update(model).items() if not name.endswith("bias")}
    want = {FACTORS: {LowRank}, RESCALED: {Rescaled}, MERGED: {Merged}, EXPERTS: {LowRank, Merged}}[exact.how]
    assert kinds <= want | {LowRank}
    assert want <= kinds
