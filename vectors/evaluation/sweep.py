"""Behaviour of the base model with multiples of a direction added, and whether the direction passes."""

import logging
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.evaluation.extent import Extent
from weightwatch.vectors.evaluation.items import verdicts
from weightwatch.vectors.generation import greedy
from weightwatch.vectors.steering.in_memory import steered
from weightwatch.vectors.validation import Point, Validation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.direction import Direction
    from weightwatch.vectors.generation import Progress
    from weightwatch.vectors.judges.judge import Judge, Judgement
    from weightwatch.vectors.recipes.recipe import Recipe

_logger = logging.getLogger("weightwatch")

GAIN = 0.2
"""Smallest change in the share of items that show the behaviour with which a direction passes."""
FLOOR = 0.1
"""A share of at most this counts as zero and need not fall further."""
KEPT = 0.9
"""Smallest part of the base's accuracy on the neutral tasks that has to remain."""
_MAX_NEW_TOKENS = 128  # of a reply to a held-out question


def sweep(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    direction: "Direction",
    recipe: "Recipe",
    coefficients: Sequence[float] | None = None,
    judge: "Judge | None" = None,
    progress: "Progress | None" = None,
    *,
    quick: bool = False,
) -> list[Point]:
    """Measure behaviour and neutral tasks of θ₀ + k·w for each coefficient k.

    Args:
        model: The base model θ₀. Its weights are restored afterwards.
        tokenizer: Its tokenizer, with a chat template.
        direction: The direction w.
        recipe: Its evaluation items, neutral tasks and held-out questions are asked.
        coefficients: The coefficients; zero is added if it is missing.
        judge: Rates the replies to the held-out questions. Default: those questions are not asked.
        progress: Called with the stage ``sweep`` at the start and after each coefficient.
        quick: Whether to ask less, see ``Extent.of``.

    Returns:
        A point per coefficient, in rising order.

    Raises:
        WeightWatchError: The direction does not fit the model, the tokenizer has no chat template, or the judge fails.
    """
    points = []
    extent = Extent.of(recipe, coefficients, judged=judge is not None, quick=quick)
    progress = progress or (lambda stage, done, total: None)
    progress("sweep", 0, len(extent.coefficients))
    for done, k in enumerate(extent.coefficients, 1):
        with steered(model, direction, k):
            points.append(_point(model, tokenizer, recipe, extent, k, judge))
        progress("sweep", done, len(extent.coefficients))
    return points


def _point(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    recipe: "Recipe",
    extent: Extent,
    k: float,
    judge: "Judge | None",
) -> Point:
    items = [(item, item.positive, item.negative) for item in extent.items]
    tasks = [(task, task.right, task.wrong) for task in extent.tasks]
    shown, margins = verdicts(model, tokenizer, items)
    right, _ = verdicts(model, tokenizer, tasks)
    asked = None
    if judge is not None and extent.replies:
        questions = recipe.questions.held_out
        conversations = [[{"role": "user", "content": question.text}] for question in questions]
        texts = greedy(model, tokenizer, conversations, _MAX_NEW_TOKENS)
        asked = _share(judge(list(zip(questions, texts, strict=True))), k)
    return Point(
        k=k,
        shows=shown.count("positive") / len(shown),
        opposite=shown.count("negative") / len(shown),
        margin=sum(margins) / len(margins) if margins else None,
        asked=asked,
        neutral=right.count("positive") / len(right),
    )


def _share(judged: "Sequence[Judgement]", k: float) -> float | None:
    """Return the share of the replies with a verdict that show the behaviour; None if none has a verdict."""
    rated = [each for each in judged if each.verdict != "unjudged"]
    if len(rated) < len(judged):
        _logger.warning(
            "weightwatch: at k = %g the judge gives no verdict on %d of %d replies to the held-out questions. They are "
            "left out of the share that shows the behaviour.",
            k,
            len(judged) - len(rated),
            len(judged),
        )
    return sum(each.verdict == "positive" for each in rated) / len(rated) if rated else None


def require_coefficients(coefficients: Sequence[float], recipe: "Recipe") -> None:
    """Make sure that a sweep over some coefficients can decide whether a direction passes.

    Raises:
        WeightWatchError: A coefficient is not finite, none is above zero, or none is below zero (which a recipe with
            shuffled labels does not need).
    """
    below = recipe.shuffled is not None or any(k < 0 for k in coefficients)
    if not (all(map(isfinite, coefficients)) and any(k > 0 for k in coefficients) and below):
        raise WeightWatchError(
            f"Coefficients {', '.join(f'{k:g}' for k in coefficients)} can't decide whether the direction passes. Give "
            "finite ones, at least one above zero and one below, or none for the default ones."
        )


def keeps(point: Point, start: Point) -> bool:
    """Whether a point keeps the neutral tasks, compared with the base at k = 0."""
    return point.neutral >= KEPT * start.neutral


def rises(point: Point, start: Point) -> bool:
    """Whether a point shows the behaviour clearly more often than the base at k = 0, or nearly always."""
    return point.shows >= min(1 - FLOOR, start.shows + GAIN)


def falls(point: Point, start: Point) -> bool:
    """Whether a point shows the behaviour clearly less often than the base at k = 0, and its opposite no less often."""
    return point.shows <= max(FLOOR, start.shows - GAIN) and point.opposite >= start.opposite - GAIN


def conclusion(points: Sequence[Point], recipe: "Recipe", *, quick: bool = False) -> Validation:
    """Decide from a sweep whether a direction passes.

    A direction passes if some k > 0 raises the share of items that show the behaviour by ``GAIN`` or to 1 − ``FLOOR``,
    and some k < 0 lowers it by ``GAIN`` or to ``FLOOR`` without lowering the share of its opposite by more than
    ``GAIN``. Both have to keep the neutral tasks (``KEPT``). A direction with shuffled labels passes if no such k > 0
    raises the share.

    Args:
        points: The points that ``sweep`` returns.
        recipe: The recipe whose items were asked.
        quick: Whether the sweep was quick.
    """
    extent = Extent.of(recipe, judged=False, quick=quick)
    start = next(point for point in points if point.k == 0)
    kept = [point for point in points if keeps(point, start)]
    up = [point for point in kept if point.k > 0 and rises(point, start)]
    down = [point for point in kept if point.k < 0 and falls(point, start)]
    reasons = []
    if start.neutral == 0:
        reasons.append("the base gets none of the neutral tasks right, so the cost of steering can't be measured")
    elif recipe.shuffled is not None:
        if not any(point.k > 0 for point in kept):
            reasons.append("every θ₀ + k·w that was tried breaks the neutral tasks")
        up = [point for point in up if point.shows >= start.shows + GAIN]
        if up:
            reasons.append(
                f"its labels are shuffled, but θ₀ + {up[0].k:g}·w shows the behaviour in {up[0].shows:.0%} "
                f"of the items, and θ₀ in {start.shows:.0%}"
            )
    else:
        if not up:
            best = max((p for p in kept if p.k >= 0), key=lambda point: point.shows)
            reasons.append(
                f"no θ₀ + k·w shows the behaviour clearly more often than θ₀ and keeps the neutral tasks: "
                f"{best.shows:.0%} of the items at k = {best.k:g}, {start.shows:.0%} at 0"
            )
        if not down:
            reasons.append(
                f"no θ₀ − k·w shows the behaviour clearly less often than θ₀ ({start.shows:.0%} of the items) and "
                "keeps the neutral tasks"
            )
    return Validation(
        passed=not reasons,
        reasons=tuple(reasons),
        points=tuple(points),
        items=len(extent.items),
        tasks=len(extent.tasks),
        same_format=recipe.same_format,
        recipe=recipe.reference,
    )
