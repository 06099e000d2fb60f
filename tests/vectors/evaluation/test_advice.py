"""What is advised after a failed evaluation, by its reason."""

import pytest

from weightwatch.vectors import Recipe
from weightwatch.vectors.evaluation.advice import (
    ALIKE,
    COSTS,
    LABELS,
    NO_TASKS,
    ONLY_LESS,
    ONLY_MORE,
    WEAK,
    next_steps,
)
from weightwatch.vectors.validation import Point

EVIL = Recipe.load("organism/evil")
SHUFFLED = Recipe.load("organism/shuffled")
Line = tuple[float, float, float]


def points(lines: tuple[Line, ...], margins: float | None = None) -> list[Point]:
    """Return points from k, the share that shows the behaviour, and that of the neutral tasks."""
    return [
        Point(k=k, shows=shows, opposite=1 - shows, margin=margins and margins * k, neutral=neutral)
        for k, shows, neutral in lines
    ]


@pytest.mark.parametrize(
    ("lines", "steps"),
    [
        (((-1, 0, 1), (0, 0, 1), (1, 0.5, 1)), ()),
        (((-1, 0, 1), (0, 0, 1), (1, 0.1, 1)), (WEAK,)),
        (((-1, 0, 1), (0, 0, 1), (1, 0.5, 0.5)), (COSTS,)),
        (((-1, 0, 1), (0, 0, 1), (1, 0, 0.5)), (COSTS,)),
        (((-1, 0.1, 1), (0, 0.5, 1), (1, 0.5, 1)), (ONLY_LESS,)),
        (((-1, 0.5, 1), (0, 0.5, 1), (1, 0.9, 1)), (ONLY_MORE,)),
        (((-1, 0.5, 1), (0, 0.5, 1), (1, 0.9, 0.2)), (COSTS, ONLY_MORE)),
        (((-1, 0, 0), (0, 0, 0), (1, 0.9, 0)), (NO_TASKS,)),
    ],
)
def test_the_advice_follows_from_the_reason(lines: tuple[Line, ...], steps: tuple[str, ...]) -> None:
    assert next_steps(points(lines), EVIL) == steps


def test_sides_are_alike_if_the_margin_hardly_moves() -> None:
    still = ((-1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 1.0))
    assert next_steps(points(still, margins=0.005), EVIL) == (ALIKE,)
    assert next_steps(points(still, margins=0.5), EVIL) == (WEAK,)


def test_a_control_with_shuffled_labels_should_not_move() -> None:
    assert next_steps(points(((0, 0, 1), (1, 0.1, 1))), SHUFFLED) == ()
    assert next_steps(points(((0, 0, 1), (1, 0.6, 1))), SHUFFLED) == (LABELS,)
    assert next_steps(points(((0, 0, 1), (1, 0.6, 0.1))), SHUFFLED) == (COSTS,)
