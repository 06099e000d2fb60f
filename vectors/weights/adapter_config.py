"""The settings of an adapter, as PEFT writes them to ``adapter_config.json``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import ADAPTER, INDEX, SINGLE
from weightwatch.vectors.weights.patterns import Patterns

CONFIG = "adapter_config.json"
WEIGHTS = ADAPTER
PICKLED = "adapter_model.bin"

KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` that leave the base unchanged, so that ``B A`` is the whole change."""

# Settings with which B A is not the whole change of the weight.
_UNSUPPORTED = (
    *("use_dora", "lora_bias", "target_parameters", "trainable_token_indices"),
    *("use_bdlora", "use_qalora", "monteclora_config", "kasa_config", "layer_replication"),
)
# Settings with which an adapter acts on some inputs only.
_INPUT_DEPENDENT = ("alora_invocation_tokens", "arrow_config")

_PATTERNS = ("rank_pattern", "alpha_pattern", "target_modules", "exclude_modules")

_MERGE = "Merge it into its base and pass the merged checkpoints."


class NotFactorsError(WeightWatchError):
    """An adapter's change is not, or not only, the product of two factors. PEFT may still be able to apply it."""


class AdapterConfig(BaseModel):
    """The settings of an adapter of any kind.

    Attributes:
        peft_type: PEFT's name of the kind: ``LORA``, ``IA3``.
        base_model_name_or_path: Path or Hub id of the base model.
        task_type: PEFT's task type of the model.
    """

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    peft_type: str | None = None
    base_model_name_or_path: str | None = None
    task_type: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "AdapterConfig":
        """Read the settings of the adapter in a folder.

        Raises:
            WeightWatchError: The file is missing, is not JSON, or has a setting of another type.
        """
        return _validated(AdapterConfig, folder, _parsed(folder))

    def require_quick(self, modules: Iterable[str]) -> None:
        """Make sure that PEFT can search a model's module names for the patterns in a reasonable time.

        Raises:
            WeightWatchError: A pattern is not a regular expression, or a search takes too long.
        """
        for setting in _PATTERNS:
            value = (self.model_extra or {}).get(setting, getattr(self, setting, None))
            patterns = [value] if isinstance(value, str) else [key for key in value or () if isinstance(key, str)]
            several = [Patterns({key: True}, False, f"{setting} of {CONFIG}") for key in patterns]
            for module in modules:
                for one in several:
                    one.of(module)


class LoraSettings(AdapterConfig):
    """The settings of a LoRA adapter whose change of each weight is ``B A``.

    Attributes:
        r: The rank.
        lora_alpha: The numerator of the scaling.
        rank_pattern: Other ranks, by pattern of the module's name.
        alpha_pattern: Other numerators, by pattern of the module's name.
        use_rslora: Whether the scaling is α/√r instead of α/r.
        fan_in_fan_out: Whether the last module that PEFT adapted is a ``Conv1D``; see ``orientation``.
        init_lora_weights: How the factors started.
        modules_to_save: Modules that were trained as full copies.
    """

    r: PositiveInt
    lora_alpha: float
    rank_pattern: dict[str, PositiveInt] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None

    @classmethod
    def read(cls, folder: Path) -> "LoraSettings":
        """Read the settings of a LoRA adapter, and make sure that its factors are all of its change.

        Raises:
            WeightWatchError: The file is missing or damaged, or the adapter is of a kind whose change is not ``B A``.
        """
        settings = _parsed(folder)
        about = _validated(AdapterConfig, folder, settings)
        if about.peft_type != "LORA":
            raise NotFactorsError(
                f"{folder} is a {about.peft_type} adapter; only LoRA is read as factors. "
                "Merge it into its base, if PEFT can, and pass the merged checkpoints."
            )
        for setting in _INPUT_DEPENDENT:
            if settings.get(setting):
                raise NotFactorsError(
                    f"{folder} was trained with {setting}={settings[setting]!r}, so it acts on some inputs only "
                    "and does not change the weights. Train a plain LoRA adapter."
                )
        for setting in _UNSUPPORTED:
            if settings.get(setting):
                raise NotFactorsError(
                    f"{folder} was trained with {setting}={settings[setting]!r}, so its change is more than B A. "
                    f"{_MERGE}"
                )
        found = _validated(LoraSettings, folder, settings)
        if found.init_lora_weights not in KEEPS_BASE:
            raise NotFactorsError(
                f"{folder} started from init_lora_weights={found.init_lora_weights!r}, which changes the base itself. "
                f"{_MERGE}"
            )
        return found

    def ranks(self) -> Patterns[int]:
        """Return the rank of each module."""
        return Patterns(self.rank_pattern or {}, self.r, f"rank_pattern of {CONFIG}")

    def alphas(self) -> Patterns[float]:
        """Return α of each module."""
        return Patterns(self.alpha_pattern or {}, self.lora_alpha, f"alpha_pattern of {CONFIG}")


Settings = TypeVar("Settings", bound=AdapterConfig)


def is_adapter(folder: Path) -> bool:
    """Whether a folder is that of a PEFT adapter, of any kind.

    Merged weights beside the settings of an adapter that is no longer there are a full checkpoint.
    """
    merged = any((folder / name).is_file() for name in (SINGLE, INDEX))
    return (folder / CONFIG).is_file() and (not merged or any((folder / n).is_file() for n in (WEIGHTS, PICKLED)))


def _parsed(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightWatchError(f"{folder / CONFIG} can't be read ({error}). Save the adapter again.") from error
    if not isinstance(settings, dict):
        raise WeightWatchError(f"{folder / CONFIG} has no settings: it is not a JSON object. Save the adapter again.")
    return settings


def _validated(kind: type[Settings], folder: Path, settings: dict[str, Any]) -> Settings:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        wrong = f"has no {where}" if first["type"] == "missing" else f"has a wrong {where} ({first['msg']})"
        raise WeightWatchError(
            f"{folder / CONFIG} {wrong}, so the change of the weights is unknown. Save the adapter again."
        ) from error
