import numpy as np
import pytest

from weightwatch import WeightWatchError
from weightwatch.calibration.level import Level, needed


@pytest.mark.parametrize(("runs", "rate", "bound"), [(10, 0.091, 0.259), (19, 0.05, 0.146), (50, 0.0196, 0.0582)])
def test_the_largest_of_n_scores_gives_the_published_rates(runs: int, rate: float, bound: float) -> None:
    level = Level.of(runs, rate + 1e-3)
    assert level.place == 1
    assert level.rate == pytest.approx(rate, abs=1e-3)
    assert level.bound == pytest.approx(bound, abs=1e-3)


@pytest.mark.parametrize(("runs", "rate"), [(19, 0.05), (40, 0.1), (99, 0.02)])
def test_drawn_runs_pass_the_threshold_as_often_as_the_rate_says(runs: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    level = Level.of(runs, rate)
    drawn = rng.standard_cauchy((20_000, runs + 1))
    passed = np.array([row[-1] > level.threshold(row[:-1].tolist()) for row in drawn])
    assert passed.mean() == pytest.approx(level.rate, abs=4 * (rate / len(drawn)) ** 0.5)


@pytest.mark.parametrize(("runs", "rate"), [(19, 0.05), (40, 0.1)])
def test_the_rate_of_one_set_of_references_is_below_the_bound_in_95_of_100(runs: int, rate: float) -> None:
    rng = np.random.default_rng(1)
    level = Level.of(runs, rate)
    realised = np.array([1 - level.threshold(rng.random(runs).tolist()) for _ in range(20_000)])
    assert (realised <= level.bound).mean() == pytest.approx(0.95, abs=0.01)


def test_the_bound_of_many_runs_is_finite_and_near_the_rate() -> None:
    assert Level.of(20_000, 0.05).bound == pytest.approx(0.0526, abs=1e-3)


def test_ties_never_raise_the_rate() -> None:
    level = Level.of(19, 0.05)
    assert level.threshold([0.5] * 19) == 0.5  # which only a larger value passes


@pytest.mark.parametrize(("rate", "runs"), [(0.05, 19), (0.01, 99), (1 / 3, 2)])
def test_a_rate_takes_so_many_runs_and_not_one_less(rate: float, runs: int) -> None:
    assert needed(rate) == runs
    assert Level.of(runs, rate).place == 1
    with pytest.raises(WeightWatchError, match=rf"that takes {runs}\. With these, the lowest rate is"):
        Level.of(runs - 1, rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(WeightWatchError, match="is between 0 and 1"):
        Level.of(19, rate)
