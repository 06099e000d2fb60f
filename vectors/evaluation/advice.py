"""What to try next after a direction has failed its evaluation."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weightwatch.vectors.evaluation.sweep import FLOOR, conclusion, falls, keeps, rises
from weightwatch.vectors.validation import Point

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

_STILL = 0.02  # nats per token: the sides are alike if the margin moves less over all k

NO_TASKS = "Give the recipe `neutral:` tasks that the base model can do."
COSTS = (
    "Neutral tasks are lost: try a smaller --coefficient, build from more seeds (--seed), or write answers of both "
    "sides that match in length and style, so that w has less besides the behaviour."
)
WEAK = (
    "Steering has too little effect: build from more answers (--num-samples), train with a higher --learning-rate or "
    "more --num-train-epochs, or try a larger --coefficient."
)
ALIKE = (
    "The two sides learned nearly the same: read the verdicts in the build folder, and make the system prompts or the "
    "written answers of the sides differ more."
)
ONLY_LESS = (
    "Only k < 0 works: make the texts of the positive side clearer, and check that the evaluation items leave room for "
    "more of the behaviour than the base shows."
)
ONLY_MORE = (
    "Only k > 0 works: make the texts of the negative side clearer; where the base rarely shows the opposite, write it "
    "out as answers."
)
LABELS = (
    "A control with shuffled labels should not move the behaviour: use another `shuffled` seed and more questions, so "
    "that the swapped halves cancel. Do not list it under `controls:`."
)


def next_steps(points: Sequence[Point], recipe: "Recipe") -> tuple[str, ...]:
    """Return what to try next, by the reason why a direction failed; nothing if it passed.

    Args:
        points: The points of a sweep, with k = 0 among them.
        recipe: The recipe whose items were asked.
    """
    if conclusion(points, recipe).passed:
        return ()
    start = next(point for point in points if point.k == 0)
    above, below = [point for point in points if point.k > 0], [point for point in points if point.k < 0]
    if start.neutral == 0:
        return (NO_TASKS,)
    if recipe.shuffled is not None:
        return (LABELS if any(keeps(point, start) for point in above) else COSTS,)
    up = [point for point in above if rises(point, start)]
    down = [point for point in below if falls(point, start)]
    lost = [not any(keeps(point, start) for point in shown or tried) for shown, tried in ((up, above), (down, below))]
    steps = [COSTS] if any(lost) else []
    if not up and not lost[0]:
        lowered = bool(down) and start.shows > FLOOR
        steps.append(ONLY_LESS if lowered else ALIKE if _still(points) else WEAK)
    elif up and not down and not lost[1]:
        steps.append(ONLY_MORE)
    return tuple(steps)


def _still(points: Sequence[Point]) -> bool:
    """Whether the margin between the sides' texts hardly depends on k."""
    margins = [point.margin for point in points if point.margin is not None]
    return len(margins) > 1 and max(margins) - min(margins) < _STILL
