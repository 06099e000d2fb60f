"""Settings of a monitor: what to watch, how often, and when to raise an alert."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from weightwatch.baseline import Baseline
from weightwatch.channel import Channels, ChannelSettings, Severity
from weightwatch.reading.grouping import Layer
from weightwatch.setup import Setup
from weightwatch.vectors import yaml_text
from weightwatch.vectors.document import Document, Strict

Figure: TypeAlias = Literal["cosine", "reach_cosine", "dose", "z", "over_controls"]
"""A figure that a reading has."""
Metric: TypeAlias = Literal[Figure, "over_baseline"]
"""What a rule judges: a figure, or what it makes of several."""
OVER_CONTROLS: frozenset[str] = frozenset({"z", "over_controls", "over_baseline"})
"""Metrics that need a control direction."""
Action: TypeAlias = Literal["log", "save", "stop", "guard"]
Mode: TypeAlias = Literal["update", "subspace", "gradient", "preventative", "checkpoint"]
FAILED = "guard-failed"
"""Name of the alert that the guard has failed."""
BYPASSED = "guard-bypassed"
"""Name of the alert that the witness of a guard rises: the behaviour comes in another way."""
_MODES: dict[str, tuple[Mode, ...]] = {
    "budget": ("update", "checkpoint"),
    "per": ("update", "gradient", "checkpoint"),
    "both_ways": ("update", "gradient", "checkpoint"),
    "strength": ("update", "subspace", "gradient", "checkpoint"),
    "rank": ("subspace",),
    "sides": ("subspace",),
    "coefficient": ("preventative",),
}
"""Modes in which a setting of the guard has a meaning; those that are not named have one in all of them."""
_SCOPES = "'model', 'any_layer', `layers: [...]` or `modules: [...]`"


def _twice(names: Sequence[str]) -> str | None:
    """Return the first name that is there more than once."""
    return next((name for name in names if names.count(name) > 1), None)


def _layer(value: Any) -> Any:
    named = isinstance(value, str) and re.fullmatch(r".+\.\d+", value)
    if not named and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(
            f"{value!r} is not allowed; it should be a layer's number, or in a model with several stacks of layers "
            "its name, such as 'encoder.block.3'"
        )
    return value


class Layers(Strict):
    """A scope: some layers, ``12`` or ``"encoder.block.3"``. Each is compared with the threshold by itself."""

    layers: list[Annotated[Layer, BeforeValidator(_layer)]] = Field(min_length=1)


class Modules(Strict):
    """A scope: some module kinds, such as ``down_proj``. Each is compared with the threshold by itself."""

    modules: list[str] = Field(min_length=1)


class Calibration(Strict):
    """Where the threshold of a rule comes from. ``weightwatch calibrate`` writes it.

    Attributes:
        runs: Number of harmless reference runs.
        rate: Share of harmless runs like them that raise the alert, at most: on average over such sets of references.
        bound: The same share for this very set, at most, with 95 % confidence.
        setup: How the references were trained and watched. The rates hold for runs with the same setup only.
    """

    runs: int = Field(ge=1)
    rate: float = Field(gt=0, lt=1)
    bound: float = Field(gt=0, le=1)
    setup: Setup


class Rule(Strict):
    """When to raise an alert. The keys are those of Prometheus' alerting rules; durations are counted in checks.

    Attributes:
        alert: Name of the alert.
        direction: Name of a watched direction.
        metric: ``cosine``, ``reach_cosine`` (default), ``dose``, ``z``, ``over_controls`` or ``over_baseline``.
        scope: ``model`` (default), ``any_layer``, ``layers: [...]`` or ``modules: [...]``. Of several layers or
            modules, one that meets the condition is enough.
        above: The condition is met when the metric is greater. Exactly one of ``above`` and ``below`` is given, and for
            a cosine it is between -1 and 1.
        below: The condition is met when the metric is less.
        for_: ``for`` in YAML: number of consecutive checks that meet the condition before the alert fires. Default 1.
        keep_firing_for: Number of checks that the alert keeps firing after the condition is no longer met. Default 0.
        severity: ``info``, ``warning`` (default) or ``critical``.
        labels: Free text to attach to the alert.
        actions: What to do when the alert fires: ``log`` (default), ``save`` a checkpoint, ``stop`` the training, or
            switch on the ``guard``.
        calibration: Where the threshold comes from; None if somebody chose it.
        baseline: Where harmless runs go, for ``metric: over_baseline``: the z of the whole model without that.
        default: Whether it is a default rule, because the settings have none.

    Example:
        >>> from weightwatch.config import Rule
        >>> rule = Rule(alert="evil-drift", direction="evil", above=0.1)
        >>> rule.threshold, rule.metric, rule.for_
        (0.1, 'reach_cosine', 1)
    """

    alert: str = Field(min_length=1)
    direction: str
    metric: Metric = "reach_cosine"
    scope: Literal["model", "any_layer"] | Layers | Modules = "model"
    above: float | None = None
    below: float | None = None
    for_: int = Field(1, alias="for", ge=1)
    keep_firing_for: int = Field(0, ge=0)
    severity: Severity = "warning"
    labels: dict[str, str] = Field(default_factory=dict)
    actions: list[Action] = Field(["log"])
    calibration: Calibration | None = None
    baseline: Baseline | None = None
    default: bool = False

    @model_validator(mode="after")
    def _of_a_baseline(self) -> "Rule":
        if (self.metric == "over_baseline") != (self.baseline is not None):
            raise ValueError("`metric: over_baseline` goes with a `baseline`, which `weightwatch calibrate` makes")
        if self.baseline is not None and (self.scope != "model" or self.above is None):
            raise ValueError("`metric: over_baseline` goes with `above` and the whole model")
        if self.baseline is not None and self.baseline.direction != self.direction:
            raise ValueError(f"the `baseline` is of {self.baseline.direction!r}, not of the direction of the rule")
        return self

    @model_validator(mode="after")
    def _one_threshold(self) -> "Rule":
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of `above` and `below`")
        return self

    @model_validator(mode="after")
    def _within_reach(self) -> "Rule":
        if self.metric in ("cosine", "reach_cosine"):
            key, limit = ("above", self.threshold) if self.above is not None else ("below", -self.threshold)
            if not -1 <= limit < 1:
                how = "never" if limit >= 1 else "always"
                raise ValueError(
                    f"`{key}: {self.threshold:g}` is {how} met, because a {self.metric} lies between -1 and 1"
                )
        return self

    def is_true(self, value: float) -> bool:
        """Whether a value of the metric meets the condition."""
        return value > self.above if self.above is not None else value < (self.below or 0.0)

    @property
    def threshold(self) -> float:
        """The value of ``above`` or ``below``."""
        return self.above if self.above is not None else (self.below or 0.0)

    @property
    def made_for(self) -> Setup | None:
        """The setup of the runs that its threshold and its baseline come from; None if it comes from no runs."""
        known = self.calibration or self.baseline
        return known.setup if known is not None else None

    def differences(self, setup: Setup, other: Setup) -> list[str]:
        """Return in what a run is so different from another that this rule's figures of that one say nothing of it."""
        return setup.differences(other, self.direction, controls=self.metric in OVER_CONTROLS)

    def standing(self, run: Setup | None) -> str | None:
        """Say what a calibrated or default threshold is worth in a run; None if it was chosen by hand.

        Args:
            run: How the run is trained and watched; None if that is not known.
        """
        if self.default:
            return "Uncalibrated: a default threshold, since the settings have no rules."
        if self.calibration is None:
            return self._beside(self.baseline, run) if self.baseline is not None else None
        known = self.calibration
        told = f"harmless runs like its {known.runs} references raise it at a rate of at most {known.rate:.1%}"
        if run is None:
            return f"Uncalibrated, since it is not known how this run is trained: {told}."
        differences = self.differences(known.setup, run)
        if differences:
            return f"Uncalibrated, since this run is not like its references ({', '.join(differences)}): {told}."
        return f"Calibrated: {told} (95 % bound for these references: {known.bound:.1%})."

    def _beside(self, baseline: Baseline, run: Setup | None) -> str:
        """Say what a threshold that was not calibrated is worth beside a baseline."""
        told = f"beyond a baseline of {baseline.runs} harmless run{'s' * (baseline.runs > 1)}"
        if run is None:
            return f"Uncalibrated, {told}; it is not known whether this run is trained like them."
        differences = self.differences(baseline.setup, run)
        if differences:
            return f"Uncalibrated, {told}, which this run is not like ({', '.join(differences)})."
        if run.steps is None:
            return f"Uncalibrated, {told} of {baseline.steps[-1]} steps; it is not known how long this run is."
        return f"Uncalibrated, {told}, trained as this one is."


class GuardSettings(Strict):
    """How directions are kept out of the update while training goes on.

    A guard sets the figures of its own directions to zero by construction. Whether the behaviour is gone shows in a
    witness: a direction of the same behaviour that was built independently, and that the guard does not touch.

    Attributes:
        directions: Names of the watched directions to keep out. Several are taken back as one joint projection.
            Default: all behaviour directions but the witness.
        witness: Name or path of the witness, which is watched too; or ``none``, to go without one.
        mode: ``subspace`` (default) keeps the outputs that the directions write to, and the inputs that they read from,
            as they were. ``update`` takes back, after each optimizer step, what the update has along the directions
            beyond the budget. ``gradient`` takes the directions out of the gradients, before the step.
            ``preventative`` trains with k·w added to the forward pass. ``checkpoint`` takes back once, when training
            ends.
        when: ``always`` (default), or after an ``alert`` of a rule whose actions name ``guard``.
        budget: The dose that is allowed, from 0 (default). For ``update`` and ``checkpoint``.
        strength: Share of the excess that is taken back at a time, above 0, at most 1 (default).
        rank: Number of outputs, and of inputs, of each weight that are kept, in ``subspace``. Default 16.
        sides: What ``subspace`` keeps of each weight: ``outputs``, ``inputs`` or ``both`` (default).
        coefficient: k of ``preventative``. Default 1.
        per: Whether the budget holds for each ``tensor`` (default) or for the ``model`` as a whole.
        both_ways: Whether movement away from the directions is taken back, too. Default false; ``subspace`` always
            takes it back.
        layers: The layers to guard: ``12``, or ``"encoder.block.3"``. Default: all weights that the directions have.
        witness_above: Reach cosine of the witness above which the alert ``guard-bypassed`` is raised. Default 0.02.
    """

    directions: list[str] = Field(default_factory=list)
    witness: str | None = None
    mode: Mode = "subspace"
    when: Literal["always", "alert"] = "always"
    budget: float = Field(0.0, ge=0)
    strength: float = Field(1.0, gt=0, le=1)
    rank: int = Field(16, ge=1)
    sides: Literal["outputs", "inputs", "both"] = "both"
    coefficient: float = Field(1.0, gt=0)
    per: Literal["tensor", "model"] = "tensor"
    both_ways: bool = False
    layers: list[Annotated[Layer, BeforeValidator(_layer)]] = Field(default_factory=list)
    witness_above: float = Field(0.02, ge=-1, lt=1)

    @model_validator(mode="after")
    def _witnessed(self) -> "GuardSettings":
        if self.witness is None:
            raise ValueError(
                "a guard needs a `witness`, a second direction of the same behaviour that was built independently; "
                "name one, or write `witness: none` to go without"
            )
        if self.witness in self.directions:
            raise ValueError(f"{self.witness!r} is both guarded and the witness; a witness is not to be touched")
        return self

    @model_validator(mode="after")
    def _of_the_mode(self) -> "GuardSettings":
        for key, modes in sorted(_MODES.items()):
            if self.mode not in modes and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` has no meaning with `mode: {self.mode}`, but with {' and '.join(modes)}")
        return self

    @property
    def of_the_mode(self) -> dict[str, Any]:
        """The settings that say what the mode does to the guarded weights, defaults included."""
        keys = {"mode", "layers", *(key for key, modes in _MODES.items() if self.mode in modes)}
        return self.model_dump(include=keys)

    @property
    def witnessed(self) -> str | None:
        """The witness; None if there is none."""
        return None if self.witness == "none" else self.witness


class Config(Strict):
    """All settings of a monitor.

    Attributes:
        directions: Names or paths of the directions to watch.
        controls: Names or paths of control directions, which give ``over_controls`` and the null band of z. Default:
            those that are stored beside the directions, see ``weightwatch build --num-controls``.
        every: Optimizer steps between checks. Checkpoints are always checked. Default 50.
        rules: The alerting rules. Default: a cautious one for each behaviour direction, which is not calibrated and
            says so; with a guard none but its witness's. ``rules: []`` for none.
        notify: The channels over which alerts are sent. Default: none; alerts are logged and recorded.
        guard: How directions are kept out of the update. Default: nothing is kept out, and training is only watched.
        on_guard_error: What to do after an error in the guard: ``stop`` the training (default), or ``continue``
            unguarded, with an alert.
        on_error: What to do after an error in monitoring: ``log`` it once and keep training (default), or ``raise`` it.
        tensorboard: Whether to write TensorBoard scalars, into a run folder of their own. Default true.
        summary: Whether to print a line at the start of the training, where it stands after each check, and a table at
            its end. Default true.
        reference: Path of the checkpoint θ₀ that training started from, if the model itself does not give it.

    Example:
        >>> from weightwatch import Config
        >>> config = Config.load({"directions": ["evil"], "every": 100})
        >>> config.every, config.on_error
        (100, 'log')
        >>> Config.load({"every": "x"})
        Traceback (most recent call last):
        weightwatch.vectors.errors.WeightWatchError: config: every: 'x' is not allowed; it should be a valid integer.
    """

    directions: list[str] = Field(default_factory=list)
    controls: list[str] = Field(default_factory=list)
    every: int = Field(50, ge=1)
    rules: list[Rule] = Field(default_factory=list)
    notify: Channels = Field(default_factory=list)
    guard: GuardSettings | None = None
    on_guard_error: Literal["stop", "continue"] = "stop"
    on_error: Literal["log", "raise"] = "log"
    tensorboard: bool = True
    summary: bool = True
    reference: str | None = None

    @field_validator("rules")
    @classmethod
    def _names_apart(cls, rules: list[Rule]) -> list[Rule]:
        if (twice := _twice([rule.alert for rule in rules])) is not None:
            raise ValueError(f"two rules have the name {twice!r}; give each its own")
        return rules

    @field_validator("notify")
    @classmethod
    def _channels_apart(cls, notify: list[ChannelSettings]) -> list[ChannelSettings]:
        if (twice := _twice([channel.name for channel in notify])) is not None:
            raise ValueError(f"the channel {twice!r} is there twice; remove one")
        return notify

    @model_validator(mode="after")
    def _names_of_the_guard(self) -> "Config":
        names = [rule.alert for rule in self.rules]
        if FAILED in names:
            raise ValueError(f"{FAILED!r} is the alert of a guard that fails, and not for a rule; name it otherwise")
        if BYPASSED in names and (self.guard is None or self.guard.witnessed is None):
            raise ValueError(
                f"{BYPASSED!r} is the alert of a guard with a witness, which is not here; give the rule another name"
            )
        return self

    @model_validator(mode="after")
    def _armed_by_a_rule(self) -> "Config":
        arming = [rule.alert for rule in self.rules if "guard" in rule.actions]
        by_alert = self.guard is not None and self.guard.when == "alert"
        if arming and not by_alert:
            raise ValueError(
                f"rule {arming[0]!r} switches on a guard, but there is no `guard:` with `when: alert`; add one"
            )
        if by_alert and not arming:
            raise ValueError("`guard: when: alert` needs a rule whose `actions:` name `guard`")
        return self

    @classmethod
    def load(cls, source: "Config | Mapping[str, Any] | str | Path | None") -> "Config":
        """Read settings.

        Args:
            source: Path of a YAML file, a dict of the same structure, a ``Config``, or None for the defaults.

        Raises:
            WeightWatchError: The file is missing or not YAML, or a key is unknown or has a value that is not allowed.
                The message names the file, the line, the path of the key, the value and what is allowed.
        """
        if isinstance(source, Config):
            return source
        if isinstance(source, str | Path):
            document = Document.read(Path(source), cls, "config")
        else:
            document = Document(cls, source, "config")
        return document.validate(wanted={"scope": _SCOPES})

    def to_yaml(self) -> str:
        """Return the settings, defaults included, as YAML that ``load`` reads.

        Controls that are not set are left out: that means those beside the directions, and none would mean none.
        """
        unset = {"controls"} - self.model_fields_set
        return yaml_text.dump(self.model_dump(by_alias=True, exclude_none=True, exclude=unset))
