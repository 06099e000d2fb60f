"""Settings: what to watch, how often, and when to raise an alert. YAML, a dict or a ``Config``."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from weightwatch.reading.grouping import Layer
from weightwatch.vectors.document import line, parse
from weightwatch.vectors.errors import WeightWatchError

Metric: TypeAlias = Literal["cosine", "reach_cosine", "dose", "z"]
Severity: TypeAlias = Literal["info", "warning", "critical"]
Action: TypeAlias = Literal["log", "save", "stop"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


def _layer(value: Any) -> Any:
    named = isinstance(value, str) and re.fullmatch(r".+\.\d+", value)
    if not named and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(
            f"{value!r} is not allowed; it should be a layer's number, or in an encoder or another tower its name, "
            "such as 'encoder.block.3'"
        )
    return value


class Layers(_Strict):
    """A scope: these layers, ``12`` or ``"encoder.block.3"``, each judged for itself."""

    layers: list[Annotated[Layer, BeforeValidator(_layer)]] = Field(min_length=1)


class Modules(_Strict):
    """A scope: these kinds of module (``down_proj``, ``mlp.c_proj``), each judged for itself."""

    modules: list[str] = Field(min_length=1)


class Rule(_Strict):
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
    actions: list[Action] = ["log"]

    @model_validator(mode="after")
    def _one_threshold(self) -> "Rule":
        if (self.above is None) == (self.below is None):
            raise ValueError("give exactly one of `above` and `below`")
        return self

    def is_true(self, value: float) -> bool:
        """Whether a value of the metric meets the condition."""
        return value > self.above if self.above is not None else value < (self.below or 0.0)

    @property
    def threshold(self) -> float:
        """The value of ``above`` or ``below``."""
        return self.above if self.above is not None else (self.below or 0.0)


class Config(_Strict):
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
        title, lines = "config", None
        if isinstance(source, str | Path):
            title, (source, lines) = str(source), parse(Path(source), "config")
        if source is not None and not isinstance(source, Mapping):
            raise WeightWatchError(f"{title}: expected keys such as `directions:`, found {source!r}.")
        try:
            return cls.model_validate(dict(source or {}))
        except ValidationError as error:
            first = _first(error)
            where = f"{title}, line {line(lines, _keys(first['loc']))}" if lines is not None else title
            raise WeightWatchError(f"{where}: {_explain(first)}") from None

    def to_yaml(self) -> str:
        """Return the settings, defaults included, as YAML that ``load`` reads."""
        return yaml.safe_dump(self.model_dump(by_alias=True, exclude_none=True), sort_keys=False)


# Where pydantic's own words don't finish the sentence "it should be …".
_WANTED = {
    "scope": "'model', 'any_layer', `layers: [...]` or `modules: [...]`",
    "too_short": "a list of at least one",
    "string_too_short": "a name",
    "invalid_key": "a word",
    "model_type": "keys such as `alert:`",
}


def _first(error: ValidationError) -> Any:
    """Return the first thing that is wrong. A union reports each of its branches: the one that was meant speaks."""
    found = error.errors()
    head = found[0]["loc"][:3]
    if head[-1:] != ("scope",):
        return found[0]
    branches = [one for one in found if one["loc"][:3] == head]
    # Least about the branch that was meant: that its only key is missing. Most: what is wrong beneath that key.
    return max(branches, key=lambda one: (one["type"] not in ("missing", "extra_forbidden"), len(one["loc"])))


def _keys(location: Iterable[int | str]) -> list[int | str]:
    """Return a location without the names that pydantic gives to the branches of a union."""
    return [part for part in location if part not in ("Layers", "Modules") and not str(part).startswith("literal[")]


def _explain(first: Any) -> str:
    """Say what is wrong: the key's path, the value, and what is allowed."""
    keys = _keys(first["loc"])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys).lstrip(".")
    if first["type"] == "extra_forbidden":
        known: type[BaseModel] = Rule if "rules" in keys[:1] else Config
        names = ", ".join(field.alias or name for name, field in known.model_fields.items())
        return f"{path} is not a known key; known are {names}."
    if first["type"] == "missing":
        return f"{path} is missing; give it a value."
    if first["type"] == "value_error":
        return f"{path}: {first['msg'].removeprefix('Value error, ')}."
    wanted = _WANTED.get("scope" if keys[-1:] == ["scope"] else first["type"])
    wanted = wanted or first["msg"].removeprefix("Input should be ")
    return f"{path}: {first['input']!r} is not allowed; it should be {wanted}."
