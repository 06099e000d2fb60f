"""Validated directions and settings of a run that has no model yet."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightwatch.config import BYPASSED, Config, Rule
from weightwatch.guard.guard import Guard
from weightwatch.monitor import Monitor, Watched, load_all
from weightwatch.report.base import Reporter
from weightwatch.rules.defaults import default_rules
from weightwatch.rules.engine import require
from weightwatch.session import Session
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.catalog import bank
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

_ENOUGH = 5
"""Controls from which on z is more than a rough figure."""

_logger = logging.getLogger("weightwatch")


@dataclass(frozen=True)
class Plan:
    """Validated directions and settings.

    Attributes:
        directions: The directions to watch, controls last.
        config: The settings, naming these directions.
    """

    directions: Sequence[Direction]
    config: Config

    @classmethod
    def of(
        cls,
        directions: Watched | Sequence[Watched] | None,
        config: Config | Mapping[str, Any] | str | Path | None,
    ) -> "Plan":
        """Load directions and settings, and validate them.

        Args:
            directions: A name, a path or a ``Direction``, or several. Default: those of ``config``.
            config: A YAML file's path, a dict or a ``Config``.

        Raises:
            WeightWatchError: Unknown or damaged direction, two of one name, a bad setting, or a rule that can't be
                applied to the directions.
        """
        settings = Config.load(config)
        named = [directions] if isinstance(directions, Direction | str | Path) else directions or settings.directions
        watched = load_all(named)
        titles = [one.name if isinstance(one, Direction) else str(one) for one in named]
        settings = settings.model_copy(update={"directions": titles})
        if "controls" not in settings.model_fields_set:
            beside = bank(one for one in named if not isinstance(one, Direction))
            settings = settings.model_copy(update={"controls": [str(control) for control in beside]})
        controls = [control.as_control() for control in load_all(settings.controls)]
        if "rules" not in settings.model_fields_set and settings.guard is None:  # else the witness has a rule
            settings = settings.model_copy(update={"rules": default_rules([*watched, *controls])})
        settings = _witnessed(settings, watched, controls)
        directions_and_controls = [*watched, *controls]
        for direction in directions_and_controls:
            _warn_if_doubtful(direction)
        plan = cls(directions_and_controls, settings)
        monitor = plan.monitor()
        require(settings.rules, directions_and_controls)
        _warn_of_a_rough_band(settings.rules, sum(each.card.kind == "control" for each in directions_and_controls))
        if settings.guard is not None:
            Guard(monitor, settings.guard)
        return plan

    def monitor(self) -> Monitor:
        """Return a monitor of these directions."""
        return Monitor(self.directions, reference=self.config.reference, ranks=Ranks.world())

    def session(self, folder: Path, events: Path, *reporters: Reporter) -> Session:
        """Return the session of a run.

        Args:
            folder: ``<output_dir>/weightwatch``.
            events: TensorBoard run folder.
            reporters: Further reporters.
        """
        return Session(self.monitor(), self.config, folder, events, ranks=Ranks.world(), reporters=reporters)


def _witnessed(settings: Config, watched: list[Direction], controls: Sequence[Direction]) -> Config:
    """Watch the witness of a guard, and add the rule that tells when the guard is bypassed.

    Args:
        settings: The settings.
        watched: The watched directions. The witness is added where it is missing.
        controls: The controls.

    Returns:
        The settings, in which the witness has its name and is among the directions.

    Raises:
        WeightWatchError: Another direction has the witness's name, or a rule with the name of the witness's alert is
            about another direction.
    """
    guard = settings.guard
    if guard is None or guard.witnessed is None:
        return settings
    titles = list(settings.directions)
    if guard.witnessed not in [direction.name for direction in [*watched, *controls]]:
        (witness,) = load_all(guard.witnessed)
        namesake = next((one for one in [*watched, *controls] if one.name == witness.name), None)
        if namesake is None:
            watched.append(witness)
            titles.append(guard.witnessed)
        elif namesake.squares != witness.squares:
            raise WeightWatchError(
                f"guard: the witness at {guard.witnessed} is called {witness.name!r}, as another watched direction is. "
                "Give each its own name."
            )
        guard = guard.model_copy(update={"witness": witness.name})
    rules = list(settings.rules)
    own = next((rule for rule in rules if rule.alert == BYPASSED), None)
    if own is not None and own.direction != guard.witness:
        raise WeightWatchError(
            f"Rule {BYPASSED!r} is about {own.direction!r}, but this is the alert of the guard's witness, which is "
            f"{guard.witness!r}. Name the witness in it, or give the rule another name."
        )
    if own is None:
        bypassed = {"alert": BYPASSED, "direction": guard.witness, "above": guard.witness_above, "severity": "critical"}
        rules.append(Rule.model_validate(bypassed))
    return settings.model_copy(update={"guard": guard, "directions": titles, "rules": rules})


def _warn_of_a_rough_band(rules: Sequence[Rule], controls: int) -> None:
    rough = [rule.alert for rule in rules if rule.metric == "z"] if controls < _ENOUGH else []
    if rough:
        _logger.warning(
            "weightwatch: rule %r uses z over %d control%s, which is a rough figure: the band of so few is hardly "
            "known. Watch %d or more, or calibrate the rule with `weightwatch calibrate`.",
            rough[0],
            controls,
            "" if controls == 1 else "s",
            _ENOUGH,
        )


def _warn_if_doubtful(direction: Direction) -> None:
    card = direction.card
    # A control need not have been evaluated, but must not have failed.
    if card.doubt is not None and (card.kind == "behaviour" or card.validation is not None):
        _logger.warning(
            "weightwatch: direction %r has not passed an evaluation: %s. Its figures may not show the behaviour. "
            "Evaluate it with `weightwatch show --evaluate`.",
            direction.name,
            card.doubt,
        )
