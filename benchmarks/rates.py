"""Rates and areas with their intervals."""

import random
from collections.abc import Callable, Sequence
from math import comb
from statistics import fmean


def exact(count: int, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of Clopper and Pearson of a rate that was met ``count`` times in ``runs``.

    Example:
        >>> [round(end, 3) for end in exact(0, 100)], [round(end, 3) for end in exact(5, 100)]
        ([0.0, 0.036], [0.016, 0.113])
    """

    def at_least(rate: float) -> float:
        return sum(comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(count, runs + 1))

    def at_most(rate: float) -> float:
        return sum(comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(count + 1))

    def crossing(of: Callable[[float], float], *, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if (of(middle) < 0.025) == rising else (low, middle)
        return low

    return (
        crossing(at_least, rising=True) if count else 0.0,
        crossing(at_most, rising=False) if count < runs else 1.0,
    )


def auroc(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the share of pairs in which the first is larger; equal ones count half."""
    return fmean((a > b) + (a == b) / 2 for a in above for b in below)


def interval(above: Sequence[float], below: Sequence[float], draws: int = 400) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the AUROC, over runs."""
    rng = random.Random(0)
    drawn = sorted(auroc(rng.choices(above, k=len(above)), rng.choices(below, k=len(below))) for _ in range(draws))
    return drawn[int(0.025 * draws)], drawn[int(0.975 * draws)]
