"""Rules for settings that have none."""

from collections.abc import Sequence

from weightwatch.config import Rule
from weightwatch.vectors.direction import Direction

ENOUGH = 5
"""Controls with shuffled labels from which on the default rules compare with them."""
FAR = 0.1
"""Default threshold of the reach cosine, where there are fewer."""
CHECKS = 2
"""Consecutive checks of the default rules."""


def default_rules(directions: Sequence[Direction]) -> list[Rule]:
    """Return a rule for each behaviour direction, for settings without rules.

    With at least five controls of shuffled labels the rule is ``over_controls > 0``: the update reaches further along
    the direction than along any control. Otherwise it is ``reach_cosine > 0.1``, which only a strong movement meets.
    Neither is calibrated, and alerts say so; docs/detection.md has what the two miss and how often they are wrong.

    Args:
        directions: The watched directions, controls included.
    """
    bank = sum(direction.card.kind == "control" and direction.card.shuffled for direction in directions)
    metric, above = ("over_controls", 0.0) if bank >= ENOUGH else ("reach_cosine", FAR)
    return [
        Rule.model_validate(
            {
                "alert": f"{direction.name}-drift",
                "direction": direction.name,
                "metric": metric,
                "above": above,
                "for": CHECKS,
                "default": True,
            }
        )
        for direction in directions
        if direction.card.kind == "behaviour"
    ]
