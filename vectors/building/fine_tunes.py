"""Fine-tunes: the two sides of a contrast, trained through TRL."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from weightwatch.vectors.building.answers import require_template
from weightwatch.vectors.building.examples import Example
from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    from weightwatch.vectors.building.answers import Report

Losses: TypeAlias = dict[int, float]
"""Validation loss, in nats a token, by the step at which it was measured."""

_DONE = "losses.json"


@dataclass(frozen=True)
class Training:
    """How each side is trained: AdamW, a learning rate that falls in a line after some steps of warm-up.

    Defaults are those of Fierro & Roger (arXiv 2511.05408), but for the learning rates: theirs is chosen by a
    validation split, too.

    Attributes:
        rank: LoRA rank.
        alpha: LoRA alpha; the update is scaled by alpha / rank.
        learning_rates: Tried on the first seed; both sides and all seeds take the one of the least validation loss.
        epochs: Passes over the examples.
        batch: Examples a step.
        at_once: Examples in memory at once, of which ``batch`` is a multiple.
        weight_decay: Of AdamW.
        warmup: Steps of warm-up; a quarter of the steps at most.
        evaluations: How often in a run the validation loss is measured; training stops, in effect, at the best.
        length: Tokens of an example at most.
        full: Train all weights instead of LoRA.
    """

    rank: int = 32
    alpha: int = 16
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4)
    epochs: float = 1.0
    batch: int = 16
    at_once: int = 4
    weight_decay: float = 0.01
    warmup: int = 5
    evaluations: int = 5
    length: int = 1024
    full: bool = False


def fine_tune(
    base: str,
    learn: Sequence[Example],
    validate: Sequence[Example],
    training: Training,
    rate: float,
    seed: int,
    folder: Path,
    report: "Report",
) -> Losses:
    """Train one side, or return what was measured when it was.

    Both sides of a contrast that get the same seed start from the same adapter and see the examples in one order.

    Args:
        base: Folder or Hub id of the base model.
        learn: What to learn.
        validate: What the validation loss is measured on.
        training: How.
        rate: The learning rate.
        seed: Of the adapter's start and of the order.
        folder: Where the adapters, or the weights, of each evaluated step are kept as ``checkpoint-<step>``.
        report: Is told of the progress.

    Returns:
        Validation losses by step.

    Raises:
        WeightWatchError: The model has no chat template.
    """
    if (folder / _DONE).is_file():
        return {int(step): loss for step, loss in json.loads((folder / _DONE).read_text()).items()}
    shutil.rmtree(folder, ignore_errors=True)
    losses = _train(base, learn, validate, training, rate, seed, folder, report)
    unfinished = folder / f"{_DONE}.part"
    unfinished.write_text(json.dumps(losses) + "\n")
    unfinished.replace(folder / _DONE)
    return losses


def best(runs: Mapping[float, Sequence[Losses]]) -> tuple[float, int]:
    """Return the learning rate and the step of the least validation loss, summed over the sides.

    One step for both sides: of two that stop at different steps the difference would hold what one learned longer.

    Args:
        runs: By learning rate, the losses of each side.

    Raises:
        WeightWatchError: None of them is finite.
    """
    sums = {
        (rate, step): sum(losses[step] for losses in sides)
        for rate, sides in runs.items()
        for step in set.intersection(*(set(losses) for losses in sides))
    }
    finite = {place: loss for place, loss in sums.items() if math.isfinite(loss)}
    if not finite:
        rates = ", ".join(f"{rate:g}" for rate in runs)
        raise WeightWatchError(
            f"No learning rate of {rates} gives a finite validation loss. Pass a lower --learning-rate."
        )
    return min(finite, key=lambda place: (finite[place], place))


def checkpoint(folder: Path, step: int) -> Path:
    """Return the folder of a step's adapter or weights."""
    return folder / f"checkpoint-{step}"


def _train(
    base: str,
    learn: Sequence[Example],
    validate: Sequence[Example],
    training: Training,
    rate: float,
    seed: int,
    folder: Path,
    report: "Report",
) -> Losses:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            report(f"{folder.parent.name} {folder.name}", state.global_step, state.max_steps)

    on_gpu = torch.cuda.is_available()
    half = on_gpu and torch.cuda.is_bf16_supported()
    steps = max(1, math.ceil(training.epochs * math.ceil(len(learn) / training.batch)))
    every = math.ceil(steps / (1 if training.full else training.evaluations))
    at_once = math.gcd(training.batch, training.at_once)
    adapter = LoraConfig(r=training.rank, lora_alpha=training.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(base)
    require_template(tokenizer)
    set_seed(seed)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.bfloat16 if half and not training.full else torch.float32
        ),
        args=SFTConfig(
            str(folder),
            max_steps=steps,
            learning_rate=rate,
            lr_scheduler_type="linear",
            warmup_steps=min(training.warmup, steps // 4),  # few examples are few steps
            weight_decay=training.weight_decay,
            optim="adamw_torch",
            per_device_train_batch_size=at_once,
            per_device_eval_batch_size=at_once,
            gradient_accumulation_steps=training.batch // at_once,
            max_length=training.length,
            eval_strategy="steps",
            eval_steps=every,
            save_strategy="steps",
            save_steps=every,
            save_only_model=True,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not on_gpu,
            bf16=half,
            gradient_checkpointing=on_gpu,
            seed=seed,
        ),
        train_dataset=Dataset.from_list(list(learn)),
        eval_dataset=Dataset.from_list(list(validate)),
        processing_class=tokenizer,
        peft_config=None if training.full else adapter,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
