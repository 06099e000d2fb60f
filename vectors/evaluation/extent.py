"""How much an evaluation asks of the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from weightwatch.vectors.recipes.verdicts import WrittenJudge

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.neutral import NeutralTask
    from weightwatch.vectors.recipes.questions import EvaluationItem
    from weightwatch.vectors.recipes.recipe import Recipe

COEFFICIENTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Default coefficients k of a sweep."""
QUICK = (-1.0, 1.0)
"""Coefficients of a quick sweep."""
_LIMIT = 32  # items, and neutral tasks, of a quick sweep

Asked = TypeVar("Asked")


@dataclass(frozen=True)
class Extent:
    """What a sweep asks.

    Attributes:
        coefficients: The coefficients k of θ₀ + k·w, in rising order. Zero is one of them.
        items: The recipe's evaluation items, or some of them.
        tasks: The neutral tasks, or some of them.
        replies: Number of held-out questions whose replies a judge rates.
    """

    coefficients: Sequence[float]
    items: "Sequence[EvaluationItem]"
    tasks: "Sequence[NeutralTask]"
    replies: int

    @classmethod
    def of(
        cls, recipe: "Recipe", coefficients: Sequence[float] | None = None, *, judged: bool, quick: bool = False
    ) -> "Extent":
        """Return what a sweep over a recipe asks.

        Args:
            recipe: The recipe.
            coefficients: The coefficients; zero is added if it is missing. Default: ``COEFFICIENTS``, or ``QUICK``.
            judged: Whether there is a judge. One ``by: written`` rates no replies.
            quick: Whether to ask only 32 items and 32 neutral tasks, evenly spread over all, and no held-out questions,
                which do not decide.
        """
        replies = judged and not quick and not isinstance(recipe.judge, WrittenJudge)
        return cls(
            sorted({0.0, *((QUICK if quick else COEFFICIENTS) if coefficients is None else coefficients)}),
            _spread(recipe.evaluation, quick),
            _spread(recipe.neutral.tasks, quick),
            len(recipe.questions.held_out) if replies else 0,
        )


def _spread(items: Sequence[Asked], quick: bool) -> Sequence[Asked]:
    if not quick or len(items) <= _LIMIT:
        return items
    return [items[number * len(items) // _LIMIT] for number in range(_LIMIT)]
