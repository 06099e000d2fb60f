"""LoRA adapters on disk: reading a PEFT folder as changes of weights, and writing one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.low_rank import LowRank
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.reader import Opener, Unmapped

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# Settings with which B A is not the whole change of the weight.
_UNSUPPORTED = (
    *("use_dora", "lora_bias", "target_parameters", "trainable_token_indices", "modules_to_save"),
    *("use_bdlora", "use_qalora", "monteclora_config", "kasa_config", "layer_replication"),
)
# Settings with which an adapter acts on some inputs only.
_INPUT_DEPENDENT = ("alora_invocation_tokens", "arrow_config")

KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` that leave the base unchanged, so that ``B A`` is the whole change."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder is that of a PEFT adapter, of any kind."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter on disk whose change of each weight is ``B A``.

    Attributes:
        folder: A folder that ``PeftModel.save_pretrained`` wrote.
        config: Its config.
    """

    folder: Path
    config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "PeftAdapter":
        """Read an adapter's config, and make sure that its tensors are all of its change.

        Raises:
            WeightWatchError: The file is missing or is not JSON, or the adapter is of a kind whose change is not
                ``B A``.
        """
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        except (OSError, ValueError) as error:
            raise WeightWatchError(f"{folder / CONFIG} can't be read ({error}). Save the adapter again.") from error
        if config.get("peft_type") != "LORA":
            raise WeightWatchError(
                f"{folder} is a {config.get('peft_type')} adapter; only LoRA is read as factors. "
                "Merge it into its base, if PEFT can, and pass the merged checkpoints."
            )
        for setting in _INPUT_DEPENDENT:
            if config.get(setting):
                raise WeightWatchError(
                    f"{folder} was trained with {setting}={config[setting]!r}, so it acts on some inputs only "
                    "and does not change the weights. Train a plain LoRA adapter."
                )
        for setting in _UNSUPPORTED:
            if config.get(setting):
                raise WeightWatchError(
                    f"{folder} was trained with {setting}={config[setting]!r}, so its change is more than B A. "
                    "Merge it into its base and pass the merged checkpoints."
                )
        if config.get("init_lora_weights", True) not in KEEPS_BASE:
            raise WeightWatchError(
                f"{folder} started from init_lora_weights={config['init_lora_weights']!r}, which changes the "
                "base itself. Merge it into its base and pass the merged checkpoints."
            )
        return cls(folder, config)

    @property
    def base(self) -> str | None:
        """Path or Hub id of the base model, as the config names it."""
        return self.config.get("base_model_name_or_path")

    @property
    def rank(self) -> int:
        """The rank that the config names."""
        return int(self.config["r"])

    def changes(self, opener: Opener = Unmapped) -> dict[str, LowRank]:
        """Return the changes by parameter name, with the scaling in ``left``.

        rsLoRA, ``rank_pattern`` and ``alpha_pattern`` count as in PEFT.

        Args:
            opener: How the file is opened.

        Raises:
            WeightWatchError: The tensors are not those of a LoRA adapter.
        """
        return self.changes_of(Checkpoint(self.folder / WEIGHTS, opener))

    def changes_of(self, tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
        """Return the changes of other tensors than those on disk, which are named as in an adapter's file."""
        from peft.utils.other import get_pattern_key

        halves: dict[str, dict[str, Tensor]] = {}
        others = []
        for key, tensor in tensors.items():
            module, _, half = key.removesuffix(".weight").rpartition(".lora_")
            if half in ("A", "B", "embedding_A", "embedding_B"):
                halves.setdefault(module, {})[half] = tensor
            else:
                others.append(key)
        for key in others:
            # Beside the factors of an embedding or a head, PEFT saves its frozen weight.
            if key.removesuffix(".weight") not in halves:
                raise WeightWatchError(
                    f"{self.folder} has {key}, which is not a LoRA factor. Merge it into its base instead."
                )
        patterns = self.config.get("alpha_pattern") or {}
        changes = {}
        for module, pair in halves.items():
            embedding = "embedding_A" in pair
            a, b = (pair.get("embedding_A" if embedding else "A"), pair.get("embedding_B" if embedding else "B"))
            if a is None or b is None:
                raise WeightWatchError(
                    f"{self.folder} has only one of the two LoRA factors of {module}. Save it again."
                )
            if a.ndim != 2:
                raise WeightWatchError(
                    f"{self.folder}: the LoRA factors of {module} are not matrices (a convolution?)."
                )
            rank = a.shape[0]
            alpha = patterns.get(get_pattern_key(patterns, module), self.config["lora_alpha"])
            scaling = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
            changes[f"{module}.weight"] = LowRank(
                left=b * scaling,
                right=a,
                transposed=embedding or bool(self.config.get("fan_in_fan_out")),
                limited="left" if embedding else "right",
            )
        return changes


def write_adapter(
    folder: Path, changes: Mapping[str, LowRank], base: str | None, task: str | None = "CAUSAL_LM"
) -> None:
    """Write changes as a PEFT adapter of scaling one, which ``PeftModel.from_pretrained`` loads.

    Args:
        folder: An existing folder.
        changes: By parameter name, each ``<module>.weight``.
        base: Id or path of the base model, for the adapter's config.
        task: PEFT's task type of the model.
    """
    from peft import LoraConfig

    tensors, ranks = {}, {}
    for name, change in changes.items():
        module = name.removesuffix(".weight")
        prefix = f"base_model.model.{module}"
        ranks[module] = change.rank
        kind = "lora_embedding_{}" if change.limited == "left" else "lora_{}.weight"
        tensors[f"{prefix}.{kind.format('A')}"] = change.right.contiguous()
        tensors[f"{prefix}.{kind.format('B')}"] = change.left.contiguous()
    most = max(ranks.values(), key=list(ranks.values()).count)
    pattern = {module: rank for module, rank in ranks.items() if rank != most}
    config = LoraConfig(
        task_type=task,
        base_model_name_or_path=base,
        inference_mode=True,
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=pattern,
        target_modules=sorted(ranks),
        fan_in_fan_out=any(c.transposed and c.limited == "right" for c in changes.values()),
    )
    config.save_pretrained(folder)
    settings = json.loads((folder / CONFIG).read_text())
    settings["target_modules"].sort()  # PEFT's are a set: the same direction would give another file each time
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
