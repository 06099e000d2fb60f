"""Settings: what to watch, how often, and when to raise an alert. YAML, a dict or a ``Config``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from weightwatch.vectors.errors import WeightWatchError

Metric: TypeAlias = Literal["cosine", "reach_cosine", "dose", "z"]
Severity: TypeAlias = Literal["info", "warning", "critical"]
Action: TypeAlias = Literal["log", "save", "stop"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class Layers(_Strict):
    """A scope: these layers, each judged for itself."""

    layers: list[int] = Field(min_length=1)


class Modules(_Strict):
    """A scope: these kinds of module (``down_proj``), each judged for itself."""

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

    def holds(self, value: float) -> bool:
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
        title = "config"
        if isinstance(source, str | Path):
            title, source = str(source), _parse(Path(source))
        if source is not None and not isinstance(source, Mapping):
            raise WeightWatchError(f"{title}: expected keys such as `directions:`, found {source!r}.")
        try:
            return cls(**(source or {}))
        except ValidationError as error:
            raise WeightWatchError(f"{title}: {_explain(error, source or {})}") from error

    def to_yaml(self) -> str:
        """Return the settings, defaults included, as YAML that ``load`` reads."""
        return yaml.safe_dump(self.model_dump(by_alias=True, exclude_none=True), sort_keys=False)


def _parse(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise WeightWatchError(f"No config at {path} ({error.strerror}). Give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise WeightWatchError(f"{path}{where} is not YAML: {getattr(error, 'problem', error)}.") from error


def _explain(error: ValidationError, source: Mapping[str, Any]) -> str:
    """Say the first thing that is wrong: the key's path, the value, and what is allowed."""
    # A union reports each of its branches; the deepest complaint is about the branch that was meant.
    first = max(error.errors(), key=lambda e: len(e["loc"]) if "scope" in e["loc"] else 0)
    keys = [part for part in first["loc"] if part not in ("Layers", "Modules") and not str(part).startswith("literal[")]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys).lstrip(".")
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = Rule if "rules" in keys[:1] else Config
        known = ", ".join(field.alias or name for name, field in model.model_fields.items())
        return f"{path} is not a known key; known are {known}."
    if first["type"] == "missing":
        return f"{path} is missing; give it a value."
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = first["input"] if not isinstance(first["input"], Mapping | BaseModel) else "the rule"
    return (
        f"{path}: {found!r} is not allowed; it should be {message}." if found != "the rule" else f"{path}: {message}."
    )
