"""A sweep: what the base does with more and more of a direction added, or taken away, and whether that is enough."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from weightwatch.vectors.checking.items import greedy, verdicts
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.steering.in_memory import steered
from weightwatch.vectors.validation import Point, Validation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from weightwatch.vectors.building.answers import Report
    from weightwatch.vectors.building.judges import Judge
    from weightwatch.vectors.direction import Direction
    from weightwatch.vectors.recipes.recipe import Recipe

FACTORS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
"""Steering units k of a sweep."""
GAIN = 0.2
"""By so much the share of items that show the behaviour has to rise, or fall."""
FLOOR = 0.1
"""A share up to this is none: from there it need not fall any further."""
KEPT = 0.9
"""Share of the neutral tasks that the base does which have to survive."""
_REPLY = 128  # tokens of a reply to a held-out question


def sweep(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    direction: "Direction",
    recipe: "Recipe",
    factors: Sequence[float] = FACTORS,
    judge: "Judge | None" = None,
    report: "Report | None" = None,
) -> list[Point]:
    """Measure behaviour and neutral tasks of θ₀ + k·w for each k.

    Args:
        model: θ₀; its weights are the same afterwards.
        tokenizer: Its tokenizer, with a chat template.
        direction: w.
        recipe: Its evaluation items, neutral tasks and held-out questions are asked.
        factors: The k, among which zero is put if it is missing.
        judge: Judges the replies to the held-out questions. Default: they are not asked.
        report: Is told of the progress.

    Returns:
        A point for each k, in rising order.

    Raises:
        WeightWatchError: The direction does not fit the model; the tokenizer has no chat template; the judge does not
            answer.
    """
    points = []
    ordered = sorted({0.0, *factors})
    for done, k in enumerate(ordered, 1):
        with steered(model, direction, k):
            points.append(_point(model, tokenizer, recipe, k, judge))
        if report:
            report("sweep", done, len(ordered))
    return points


def _point(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", recipe: "Recipe", k: float, judge: "Judge | None"
) -> Point:
    items = [(item, item.positive, item.negative) for item in recipe.evaluation]
    tasks = [(task, task.right, task.wrong) for task in recipe.neutral.tasks]
    shown, margins = verdicts(model, tokenizer, items)
    right, _ = verdicts(model, tokenizer, tasks)
    asked = None
    if judge is not None:
        questions = recipe.questions.held_out
        conversations = [[{"role": "user", "content": question.text}] for question in questions]
        said = greedy(model, tokenizer, conversations, _REPLY)
        judged = judge(list(zip(questions, said, strict=True)))
        asked = sum(each.verdict == "positive" for each in judged) / len(judged)
    return Point(
        k=k,
        shows=shown.count("positive") / len(shown),
        opposite=shown.count("negative") / len(shown),
        margin=sum(margins) / len(margins) if margins else None,
        asked=asked,
        neutral=right.count("positive") / len(right),
    )


def require_factors(factors: Sequence[float], recipe: "Recipe") -> None:
    """Make sure that a sweep over some k can tell whether a direction passes.

    Raises:
        WeightWatchError: None is above zero or, unless labels were shuffled, none below; or one is not finite.
    """
    below = recipe.shuffled is not None or any(k < 0 for k in factors)
    if not (all(map(isfinite, factors)) and any(k > 0 for k in factors) and below):
        raise WeightWatchError(
            f"Whether a direction passes can't be told from k = {', '.join(f'{k:g}' for k in factors)}. Give finite "
            "ones, one above zero and one below at least, or none for the usual ones."
        )


def validated(points: Sequence[Point], recipe: "Recipe") -> Validation:
    """Judge a sweep.

    A direction passes if, with the neutral tasks kept (``KEPT``), some k > 0 makes the share of items that show the
    behaviour rise by ``GAIN``, and some k < 0 makes it fall by as much, or to ``FLOOR``. One whose labels were shuffled
    passes if no k makes it rise by as much.

    Args:
        points: Of ``sweep``.
        recipe: Whose items were asked.
    """
    start = next(point for point in points if point.k == 0)
    kept = [point for point in points if point.neutral >= KEPT * start.neutral]
    rises = [point for point in kept if point.k > 0 and point.shows >= start.shows + GAIN]
    falls = [point for point in kept if point.k < 0 and point.shows <= max(FLOOR, start.shows - GAIN)]
    falls = [point for point in falls if point.opposite >= start.opposite - GAIN]
    reasons = []
    if start.neutral == 0:
        reasons.append("the base does none of the neutral tasks, so that nothing tells what steering costs")
    elif recipe.shuffled is not None:
        if not any(point.k > 0 for point in kept):
            reasons.append("every θ₀ + k·w that was tried breaks the neutral tasks")
        if rises:
            reasons.append(
                f"its labels are shuffled, and yet θ₀ + {rises[0].k:g}·w shows the behaviour in {rises[0].shows:.0%} "
                f"of the items, θ₀ in {start.shows:.0%}"
            )
    else:
        if not rises:
            best = max((p for p in kept if p.k >= 0), key=lambda point: point.shows)
            reasons.append(
                f"no θ₀ + k·w shows the behaviour clearly more often than θ₀ does and keeps the neutral tasks: "
                f"{best.shows:.0%} of the items at k = {best.k:g}, {start.shows:.0%} at 0"
            )
        if not falls:
            reasons.append(
                f"no θ₀ − k·w shows it clearly less often than θ₀ does ({start.shows:.0%} of the items) and keeps the "
                "neutral tasks"
            )
    return Validation(
        passed=not reasons,
        reasons=tuple(reasons),
        points=tuple(points),
        items=len(recipe.evaluation),
        tasks=len(recipe.neutral.tasks),
        recipe=recipe.reference,
    )
