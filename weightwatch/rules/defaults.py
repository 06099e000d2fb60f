"""Rules for settings that have none."""

from collections.abc import Sequence

from weightwatch.config import Config, Rule
from weightwatch.vectors.direction import Direction

ENOUGH = 5
"""Controls with shuffled labels from which on the default rules compare with them."""
FAR = 0.1
"""Default threshold of the reach cosine, where there are fewer."""
CHECKS = 2
"""Consecutive checks of the default rules in a live run."""


def default_rules(directions: Sequence[Direction], checks: int = CHECKS) -> list[Rule]:
    """Return a rule for each behaviour direction, for settings without rules.

    With at least five controls of shuffled labels the rule is ``over_controls > 0``: the update reaches further along
    the direction than along any control. Otherwise it is ``reach_cosine > 0.1``, which only a strong movement meets.
    Neither is calibrated, and alerts say so; docs/detection.md has what the two miss and how often they are wrong.

    Args:
        directions: The watched directions, controls included.
        checks: Consecutive checks that must meet the condition.
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
                "for": checks,
                "default": True,
            }
        )
        for direction in directions
        if direction.card.kind == "behaviour"
    ]


def rules_of_a_scan(settings: Config, directions: Sequence[Direction]) -> list[Rule]:
    """Return the rules of a scan: those of the settings, or default ones where the settings have none.

    A default rule of a scan judges each checkpoint by itself. In a live run a condition must hold for two checks, which
    are a few steps apart. Checkpoints may be an epoch apart or the only one, and each is a model that may be used. So
    the scan of a run and that of its last checkpoint alone agree about this checkpoint.

    Default rules that a run has recorded in its ``config.yaml`` are those of its checks. They are left out: where there
    is no other rule, they count as none.

    Args:
        settings: The settings.
        directions: The directions of the scan, controls included.
    """
    own = [rule for rule in settings.rules if not rule.default]
    none = "rules" in settings.model_fields_set and not settings.rules
    return own if own or none else default_rules(directions, checks=1)
