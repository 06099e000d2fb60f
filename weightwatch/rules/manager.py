"""The rules of one run: their engine, their alerts, and the clean checkpoints to go back to."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import Engine, RuleState
from weightwatch.setup import Setup

Memory: TypeAlias = tuple[Engine, list[Alert], dict[str, list[str]]]
"""The engine, the alerts so far, and the clean checkpoints of each rule."""


class RuleManager:
    """Applies the rules of a run to its readings, in order. The cost of a reading does not grow with the run.

    A checkpoint is clean for a rule if the rule's condition was not true at its reading. An alert names the newest
    clean checkpoint that still exists, since trainers delete old ones (``save_total_limit``).

    Args:
        rules: The rules.
        exists: Returns whether the checkpoint of a name is on disk.
        setup: How the run is trained and watched, which calibrated rules ask for; None if that is not known.

    Attributes:
        engine: The rules and their states.
        alerts: All alerts so far, in order.
    """

    def __init__(self, rules: Sequence[Rule], exists: Callable[[str], bool], setup: Setup | None = None) -> None:
        self.engine = Engine.of(rules)
        self.alerts: list[Alert] = []
        self._exists = exists
        self._notes = {rule.alert: rule.standing(setup) for rule in rules}
        self._clean: dict[str, list[str]] = {rule.alert: [] for rule in rules}

    def apply(self, reading: Reading) -> list[Alert]:
        """Apply the rules to the next reading.

        Returns:
            The alerts of the rules that began to fire or were resolved.

        Raises:
            WeightWatchError: A rule can't be applied to the reading; see ``Engine.apply``.
        """
        self.engine, raised = self.engine.apply(reading)
        if reading.checkpoint is not None:
            self.mark(reading.checkpoint)
        raised = [self._completed(alert) for alert in raised]
        self.alerts += raised
        return raised

    def mark(self, checkpoint: str) -> None:
        """Record that a checkpoint has the weights of the last reading."""
        for rule in self.engine.clean:
            self._clean[rule].append(checkpoint)

    def replay(self, readings: Iterable[Reading]) -> None:
        """Apply the rules to the readings of a history, in order."""
        for reading in readings:
            self.apply(reading)

    @property
    def firing(self) -> list[str]:
        """Names of the rules that fire now."""
        return [name for name, fires in self.engine.firing.items() if fires]

    @property
    def states(self) -> dict[str, RuleState]:
        """The states of the rules, by name."""
        return {rule.alert: state for rule, state in zip(self.engine.rules, self.engine.states, strict=True)}

    def resume(
        self, states: Mapping[str, RuleState], clean: Mapping[str, Collection[str]], alerts: Iterable[Alert]
    ) -> None:
        """Continue from recorded states.

        Args:
            states: The states of these rules, by name.
            clean: The checkpoints of the run, in order, and for each the names of the rules that it is clean for.
            alerts: The recorded alerts, of which those of these rules count.

        Raises:
            KeyError: They are states of other rules.
        """
        engine = Engine(self.engine.rules, tuple(states[rule.alert] for rule in self.engine.rules))
        of_rule = {rule: [name for name, rules in clean.items() if rule in rules] for rule in self._clean}
        self.memory = engine, [alert for alert in alerts if alert.alert in self._clean], of_rule

    @property
    def memory(self) -> Memory:
        """All that the next reading depends on, to hand to another process."""
        return self.engine, self.alerts, self._clean

    @memory.setter
    def memory(self, found: Memory) -> None:
        self.engine, self.alerts, self._clean = found

    def _completed(self, alert: Alert) -> Alert:
        note = self._notes[alert.alert] if alert.state == "firing" else None
        return replace(alert, last_clean=self._last_clean(alert.alert), note=note)

    def _last_clean(self, rule: str) -> str | None:
        clean = self._clean[rule]
        while clean and not self._exists(clean[-1]):
            clean.pop()  # a deleted checkpoint does not come back, so each is looked up once
        return clean[-1] if clean else None
