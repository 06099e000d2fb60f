"""How often a threshold that comes from harmless runs is passed by another harmless run.

The runs are exchanged as a whole: each has one score, the largest value over its checks. If n reference runs and a new
one are alike, the new one's score is equally likely to have any of the n + 1 ranks. So the chance that it is above the
k-th largest of the n is at most k / (n + 1), however many checks a run has.

Source: Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005, chapter 2; for the rate given the
references, Vovk, *Conditional validity of inductive conformal predictors*, ACML 2012.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, lgamma, log, log1p

from weightwatch.vectors.errors import WeightWatchError

_LOWEST = 1e-6  # it takes a million runs


@dataclass(frozen=True)
class Level:
    """A rate of false alarms, and the place of the threshold among the references that gives it.

    Attributes:
        runs: Number n of reference runs.
        place: k: the threshold is the k-th largest of their scores.

    Example:
        >>> level = Level.of(19, 0.05)
        >>> level.place, level.rate, round(level.bound, 3)
        (1, 0.05, 0.146)
    """

    runs: int
    place: int

    @classmethod
    def of(cls, runs: int, rate: float) -> "Level":
        """Return the level whose rate is the highest that is not above a wanted one.

        Args:
            runs: Number of reference runs.
            rate: The wanted rate, between 0 and 1.

        Raises:
            WeightWatchError: The rate is out of range, or so many runs can't support it.
        """
        place = min(floor(require_rate(rate) * (runs + 1) + 1e-9), runs)
        if place < 1:
            raise WeightWatchError(
                f"{_told(runs)} can't support a rate of {rate:.3g}: that takes {needed(rate)}. With these, the lowest "
                f"rate is {1 / (runs + 1):.3g}."
            )
        return cls(runs, place)

    @property
    def rate(self) -> float:
        """Share of harmless runs like the references that pass the threshold, at most, over all draws of references."""
        return self.place / (self.runs + 1)

    @property
    def bound(self) -> float:
        """What that share is at most for this one draw of references, with 95 % confidence.

        The share that these references give is distributed as Beta(k, n + 1 − k), and this is its 95th percentile.
        """
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            below = sum(_binomial(self.runs, j, middle) for j in range(self.place))
            low, high = (middle, high) if below > 0.05 else (low, middle)
        return high

    def threshold(self, scores: Sequence[float]) -> float:
        """Return the threshold among the references' scores, which only a larger value passes."""
        return sorted(scores, reverse=True)[self.place - 1]


def _binomial(n: int, j: int, p: float) -> float:
    """Return the chance of j successes in n trials. In logarithms, since the coefficients overflow for large n."""
    return exp(lgamma(n + 1) - lgamma(j + 1) - lgamma(n - j + 1) + j * log(p) + (n - j) * log1p(-p))


def require_rate(rate: float) -> float:
    """Return a rate of false alarms.

    Raises:
        WeightWatchError: It is not between 0 and 1.
    """
    if not _LOWEST <= rate < 1:
        raise WeightWatchError(
            f"A rate of false alarms is between 0 and 1, at least {_LOWEST:g}, and not {rate:g}. 0.05 is usual."
        )
    return rate


def needed(rate: float) -> int:
    """Return how many reference runs a rate takes.

    Example:
        >>> needed(0.05), needed(0.01)
        (19, 99)
    """
    return ceil(1 / rate - 1e-9) - 1


def _told(runs: int) -> str:
    return "One reference run" if runs == 1 else f"{runs} reference runs"
