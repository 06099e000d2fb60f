"""Adapters whose change is more than B A: loaded with their base, and measured like a live model."""

from collections.abc import Sequence
from typing import Any

from weightwatch.monitor import Monitor
from weightwatch.reading.reading import Reading
from weightwatch.scan.checkpoints import SavedCheckpoint
from weightwatch.update.peft.lora import REF
from weightwatch.update.reference import Reference
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import AdapterConfig, is_adapter
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import kind


def measure_loaded(
    adapter: SavedCheckpoint, base: Checkpoint, directions: Sequence[Direction], reference: Reference
) -> tuple[Reading, bool]:
    """Load an adapter into its base, and measure it. This takes the memory of the whole model.

    Args:
        adapter: The adapter.
        base: Its base, with a config.
        directions: The directions.
        reference: θ₀ of fully trained tensors, and the adapter's parameters at the start, as far as the run recorded
            them. Without parameters, the start is that of a new adapter with the same settings.

    Returns:
        The reading, and whether a new adapter starts at random: the update then includes that start.

    Raises:
        WeightWatchError: The adapter can't be loaded into this base, or can't be measured.
    """
    from peft import (
        PeftConfig,
        get_peft_model,
        get_peft_model_state_dict,
        load_peft_weights,
        set_peft_model_state_dict,
    )

    monitor, random = Monitor(directions, reference=reference), False
    try:
        AdapterConfig.read(adapter.home).require_quick(base)
        config = PeftConfig.from_pretrained(str(adapter.home))
        _require_plain(adapter, config)
        config.inference_mode = False
        model = get_peft_model(kind(base.path).from_pretrained(base.path, dtype="auto"), config)
        if is_adapter(adapter.home / REF):
            model.load_adapter(str(adapter.home / REF), REF)
        elif not reference.adapters:
            monitor.start(model)
            random = bool(monitor.reference.adapters) and not _starts_alike(config)
            if random:
                monitor = Monitor(directions, reference=Reference(reference.weights))
        tensors = load_peft_weights(str(adapter.home), device="cpu")
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
        left = set_peft_model_state_dict(model, tensors)
    except WeightWatchError:
        raise
    except Exception as error:  # raised by PEFT, transformers, or a model's own code
        raise WeightWatchError(
            f"{adapter.home} can't be loaded with its base {base.path} ({error!r}). Pass as --reference the base that "
            "it was trained on."
        ) from error
    if left.unexpected_keys:
        raise WeightWatchError(
            f"{adapter.home} has a tensor {left.unexpected_keys[0]} that does not fit its base {base.path}. Pass as "
            "--reference the base that it was trained on."
        )
    lacking = next((name for name in wanted if name not in tensors), None)
    if lacking is not None:  # PEFT would leave it as it is in a new adapter
        raise WeightWatchError(
            f"{adapter.home} lacks the tensor {lacking}, which its settings ask for. Save the adapter again."
        )
    return monitor.read(monitor.view(model), adapter.step), random


def _require_plain(adapter: SavedCheckpoint, config: Any) -> None:
    """Refuse settings with which PEFT would load a tokenizer or a module that the adapter names, and run its code."""
    if config.is_prompt_learning:
        raise WeightWatchError(
            f"{adapter.path} is an adapter of type {config.peft_type.value}, which is not supported, since it changes "
            "the model's inputs instead of its weights."
        )
    if getattr(config, "megatron_config", None):
        raise WeightWatchError(
            f"{adapter.path} asks for the modules of Megatron (megatron_config), which is not supported. Merge the "
            "adapter into its base and scan the merged model."
        )


def _starts_alike(config: Any) -> bool:
    """Whether the start of an adapter follows from the base alone. DoRA's start is zero up to rounding."""
    init = getattr(config, "init_lora_weights", None)
    return init in ("pissa", "olora") or (init in (True, "gaussian") and config.use_dora)
