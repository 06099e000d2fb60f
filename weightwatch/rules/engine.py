"""The rule engine: a pure state machine over readings, so a live run, a scan and a replayed history give equal alerts.

Before the first step nothing has moved, so no condition is true. A rule is inactive, pending (its condition has been
true in fewer consecutive checks than ``for``) or firing::

    inactive --true--> pending --true for `for` checks--> firing --false for more than `keep_firing_for`--> inactive
                          |                                                                                    ^
                          +------------------------------------false-------------------------------------------+
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from weightwatch.baseline import Baseline
from weightwatch.config import OVER_CONTROLS, Layers, Modules, Rule
from weightwatch.reading.reading import LINE, DirectionReading, Reading, Score
from weightwatch.rules.alert import Alert
from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:  # what reads a record needs no torch
    from weightwatch.vectors.direction import Direction

_TOP = 3

K = TypeVar("K")


@dataclass(frozen=True)
class RuleState:
    """State of a rule between two checks."""

    __pydantic_config__ = LINE

    true_for: int = 0
    """Number of consecutive checks in which the condition has been true."""
    false_for: int = 0
    """Number of consecutive checks in which the condition has not been true."""
    since: int = 0
    """Step of the first check that ``true_for`` counts."""
    firing: bool = False
    """Whether the rule fires."""
    judged: bool = True
    """Whether the rule could judge the last check: one with a baseline can't before its first step."""


@dataclass(frozen=True)
class Engine:
    """Rules and their states. Immutable: ``apply`` returns the next engine.

    Attributes:
        rules: The rules.
        states: The state of each rule.

    Example:
        >>> from weightwatch.reading.reading import DirectionReading
        >>> engine = Engine.of([Rule(alert="drift", direction="evil", metric="cosine", above=0.1)])
        >>> reading = Reading(40, "", 1.3, {"evil": DirectionReading(0.31, 0.4, 0.1, 0.75, 0.31)})
        >>> engine, alerts = engine.apply(reading)
        >>> engine.firing, alerts[0].where, alerts[0].value
        ({'drift': True}, 'model', 0.31)
    """

    rules: tuple[Rule, ...]
    states: tuple[RuleState, ...]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> "Engine":
        """Return an engine in which every rule is inactive."""
        return cls(tuple(rules), tuple(RuleState() for _ in rules))

    def apply(self, reading: Reading) -> tuple["Engine", list[Alert]]:
        """Apply the rules to one reading.

        Returns:
            The engine for the next reading, and an alert for each rule that began to fire or was resolved. The caller
            sets ``last_clean`` of the alerts.

        Raises:
            WeightWatchError: A rule has a direction, layer or module that is not in the reading, or a metric that
                needs controls, and there are none.
        """
        stepped = [_step(rule, state, reading) for rule, state in zip(self.rules, self.states, strict=True)]
        return Engine(self.rules, tuple(state for state, _ in stepped)), [a for _, a in stepped if a is not None]

    @property
    def firing(self) -> dict[str, bool]:
        """Whether each rule fires now, by name."""
        return {rule.alert: state.firing for rule, state in zip(self.rules, self.states, strict=True)}

    @property
    def clean(self) -> list[str]:
        """Names of the rules that could judge the last reading, and whose condition was not true there."""
        states = zip(self.rules, self.states, strict=True)
        return [rule.alert for rule, state in states if state.judged and not state.true_for]


def require(rules: Sequence[Rule], directions: Sequence["Direction"]) -> None:
    """Refuse rules that can't be applied to readings of these directions.

    Raises:
        WeightWatchError: The direction of a rule is not watched, or its metric needs controls, and there are none.
    """
    kinds = {direction.name: direction.card.kind for direction in directions}
    for rule in rules:
        if rule.direction not in kinds:
            raise WeightWatchError(_unwatched(rule, kinds))
        if rule.baseline is not None:
            _require_same(rule, rule.baseline, kinds)
        controlled = kinds[rule.direction] != "control" and "control" in kinds.values()
        if rule.metric in OVER_CONTROLS and not controlled:
            raise WeightWatchError(_without_controls(rule))


def _step(rule: Rule, state: RuleState, reading: Reading) -> tuple[RuleState, Alert | None]:
    where, value = worst(rule, reading)
    if value is not None and reading.update_norm > 0 and rule.is_true(value):
        since = state.since if state.true_for else reading.step
        fires = state.firing or state.true_for + 1 >= rule.for_
        after = RuleState(state.true_for + 1, 0, since, fires)
    else:
        fires = state.firing and state.false_for + 1 <= rule.keep_firing_for
        judged = value is not None
        after = replace(state, true_for=0, false_for=state.false_for + 1, firing=fires, judged=judged)
    if after.firing == state.firing or value is None:
        return after, None
    return after, _alert(rule, after, reading, where, value)


def _alert(rule: Rule, state: RuleState, reading: Reading, where: str, value: float) -> Alert:
    found = reading[rule.direction]
    sign = 1.0 if rule.above is not None else -1.0
    parts = rule.baseline is None  # a baseline is of the whole model: it can't tell which part goes beyond it
    return Alert(
        alert=rule.alert,
        state="firing" if state.firing else "resolved",
        severity=rule.severity,
        direction=rule.direction,
        metric=rule.metric,
        value=value,
        threshold=rule.threshold,
        where=where,
        step=reading.step,
        since=state.since,
        time=reading.time,
        top_layers=tuple(_most(found.layers, sign)) if parts else (),
        top_modules=tuple(_most(found.modules, sign)) if parts else (),
        last_clean=None,
        labels=rule.labels,
        actions=tuple(rule.actions) if state.firing else (),
    )


def worst(rule: Rule, reading: Reading) -> tuple[str, float | None]:
    """Return the part in the rule's scope with the highest value (the lowest under ``below``), and the value.

    The value is None where a rule with a baseline can't judge: before the baseline's first step.

    Raises:
        WeightWatchError: See ``Engine.apply``.
    """
    if rule.direction not in reading.directions:
        raise WeightWatchError(_unwatched(rule, reading.directions))
    if rule.baseline is not None:
        _require_same(rule, rule.baseline, reading.directions)
        figures = {name: reading[name].reach_cosine for name in rule.baseline.figures}
        return "model", rule.baseline.z(figures, reading.step)
    values = {part: _value(rule, score) for part, score in _parts(rule, reading[rule.direction]).items()}
    choose = max if rule.above is not None else min
    return choose(values.items(), key=lambda item: item[1])


def _parts(rule: Rule, found: DirectionReading) -> dict[str, Score]:
    layers = {f"layer {layer}": score for layer, score in found.layers.items()}
    match rule.scope:
        case Layers(layers=wanted):
            return _pick(rule, layers, [f"layer {layer}" for layer in wanted])
        case Modules(modules=wanted):
            return _pick(rule, found.modules, wanted)
        case "any_layer":
            return {part: score for part, score in layers.items() if score.reach > 0} or {"model": found}
        case _:
            return {"model": found}


def _pick(rule: Rule, parts: Mapping[str, Score], wanted: Sequence[str]) -> dict[str, Score]:
    missing = [part for part in wanted if part not in parts]
    if missing:
        raise WeightWatchError(f"Rule {rule.alert!r}: the model has no {missing[0]}; it has {', '.join(parts)}.")
    return {part: parts[part] for part in wanted}


def _value(rule: Rule, score: Score) -> float:
    value: float | None = getattr(score, rule.metric)
    if value is None:
        raise WeightWatchError(_without_controls(rule))
    return value


def _require_same(rule: Rule, baseline: Baseline, watched: Iterable[str]) -> None:
    """Refuse a baseline with a control that is not watched."""
    missing = set(baseline.controls) - set(watched)
    if missing:
        raise WeightWatchError(
            f"The baseline of rule {rule.alert!r} has the control {min(missing)!r}, which is not watched. Watch the "
            "controls of its runs, or make a baseline anew with `weightwatch calibrate --baseline`."
        )


def _unwatched(rule: Rule, watched: Iterable[str]) -> str:
    return (
        f"Rule {rule.alert!r} is about the direction {rule.direction!r}, which is not watched. Watched directions: "
        f"{', '.join(watched)}."
    )


def _without_controls(rule: Rule) -> str:
    return (
        f"Rule {rule.alert!r} uses {rule.metric}, which needs a behaviour direction and a control direction with "
        "weights in the same part of the model. Add directions under `controls:`, or use another metric."
    )


def _most(parts: Mapping[K, Score], sign: float) -> list[K]:
    """Return the parts that contribute most to the movement towards the threshold, in descending order."""
    moved = {part: sign * score.share for part, score in parts.items() if sign * score.share > 0}
    return sorted(moved, key=lambda part: -moved[part])[:_TOP]
