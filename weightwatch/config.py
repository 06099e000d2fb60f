"""Settings: what to watch, how often, and when to raise an alert. YAML, a dict or a ``Config``."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from weightwatch.reading.grouping import Layer
from weightwatch.vectors.document import Document, Strict

Metric: TypeAlias = Literal["cosine", "reach_cosine", "dose", "z"]
Severity: TypeAlias = Literal["info", "warning", "critical"]
Action: TypeAlias = Literal["log", "save", "stop"]
_SCOPES = "'model', 'any_layer', `layers: [...]` or `modules: [...]`"


def _layer(value: Any) -> Any:
    named = isinstance(value, str) and re.fullmatch(r".+\.\d+", value)
    if not named and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(
            f"{value!r} is not allowed; it should be a layer's number, or in an encoder or another tower its name, "
            "such as 'encoder.block.3'"
        )
    return value


class Layers(Strict):
    """A scope: these layers, ``12`` or ``"encoder.block.3"``, each judged for itself."""

    layers: list[Annotated[Layer, BeforeValidator(_layer)]] = Field(min_length=1)


class Modules(Strict):
    """A scope: these kinds of module (``down_proj``, ``mlp.c_proj``), each judged for itself."""

    modules: list[str] = Field(min_length=1)


class Rule(Strict):
    """When to raise an alert. The words are those of Prometheus' alerting rules; times are counted in checks.

    Attributes:
        alert: Name of the alert.
        direction: Name of a watched direction.
        metric: ``cosine``, ``reach_cosine`` (default), ``dose`` or ``z``.
        scope: ``model`` (default), ``any_layer``, ``layers: [...]`` or ``modules: [...]``. With several parts, one
            that passes the threshold is enough.
        above: The condition holds when the metric is greater. Exactly one of ``above`` and ``below`` is given.
        below: The condition holds when the metric is less.
        for_: ``for`` in YAML: the alert fires when the condition has held in so many consecutive checks. Default 1.
        keep_firing_for: It goes on firing for so many checks after the condition ceased. Default 0.
        severity: ``info``, ``warning`` (default) or ``critical``.
        labels: Free text that goes into the alert.
        actions: What to do when it fires: ``log`` (default), ``save`` a checkpoint, ``stop`` the training.
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

    @model_validator(mode="after")
    def _one_threshold(self) -> "Rule":
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of `above` and `below`")
        return self

    def holds(self, value: float) -> bool:
        """Whether a value of the metric meets the condition."""
        return value > self.above if self.above is not None else value < (self.below or 0.0)

    @property
    def threshold(self) -> float:
        """The value of ``above`` or ``below``."""
        return self.above if self.above is not None else (self.below or 0.0)


class Config(Strict):
    """All settings of a monitor.

    Attributes:
        directions: Names or paths of the directions to watch.
        controls: Names or paths of control directions: the null band from which z is computed.
        every: Optimizer steps between checks. Checkpoints are checked always. Default 50.
        rules: The alerting rules. None by default: thresholds belong to a base model and a recipe.
        on_error: What a fault in monitoring does: ``log`` it once and train on (default), or ``raise`` it.
        tensorboard: Write TensorBoard scalars into a run folder of their own. Default true.
        summary: Print a table at the end of the training. Default true.
        reference: Path of the base checkpoint, where the model can't tell θ₀ itself.
    """

    directions: list[str] = Field(default_factory=list)
    controls: list[str] = Field(default_factory=list)
    every: int = Field(50, ge=1)
    rules: list[Rule] = Field(default_factory=list)
    on_error: Literal["log", "raise"] = "log"
    tensorboard: bool = True
    summary: bool = True
    reference: str | None = None

    @field_validator("rules")
    @classmethod
    def _names_apart(cls, rules: list[Rule]) -> list[Rule]:
        names = [rule.alert for rule in rules]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two rules are called {twice!r}; give each its own name")
        return rules

    @classmethod
    def load(cls, source: "Config | Mapping[str, Any] | str | Path | None") -> "Config":
        """Read settings.

        Args:
            source: A YAML file's path, a dict of the same shape, a ``Config``, or None for the defaults.

        Raises:
            WeightWatchError: The file is missing or no YAML, or a key is unknown or has a value that is not allowed;
                the message names the file, the key's path, the value and what is allowed.
        """
        if isinstance(source, Config):
            return source
        if isinstance(source, str | Path):
            document = Document.read(Path(source), cls, "config")
        else:
            document = Document(cls, source, "config")
        return document.validate(wanted={"scope": _SCOPES})

    def to_yaml(self) -> str:
        """Return the settings, defaults included, as YAML that ``load`` reads."""
        return yaml.safe_dump(self.model_dump(by_alias=True, exclude_none=True), sort_keys=False)
