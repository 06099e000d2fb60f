"""Fine-tunes: the two sides of a contrast, trained with TRL."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from pydantic import TypeAdapter, ValidationError

from weightwatch.vectors.building.examples import Example
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.generation import require_template
from weightwatch.vectors.weights.atomic import write_text

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from weightwatch.vectors.generation import Progress

Losses: TypeAlias = dict[int, float]
"""Validation loss, in nats per token, by training step."""

_DONE = "losses.json"


@dataclass(frozen=True)
class Training:
    """How each side is trained: AdamW, with linear decay of the learning rate after a warm-up.

    The defaults are those of Fierro & Roger (arXiv 2511.05408), except for the learning rates to try; the paper, too,
    chooses the learning rate on a validation split.

    Attributes:
        rank: LoRA rank.
        alpha: LoRA alpha; the update is scaled by alpha / rank.
        learning_rates: Peak learning rates to try on the first seed. Both sides and all seeds use the one with the
            lowest validation loss.
        num_train_epochs: Number of passes over the examples.
        batch_size: Number of examples per optimizer step.
        micro_batch_size: Number of examples per forward pass; gradients are accumulated up to ``batch_size``.
        weight_decay: Weight decay of AdamW.
        warmup: Warm-up steps, at most a quarter of all steps.
        evaluations: How often the validation loss is measured in a run. The checkpoint with the lowest loss is used.
        length: Maximum length of an example in tokens.
        full: Train all weights instead of LoRA.
        modules_to_save: Names of modules that are trained whole beside LoRA, such as ``embed_tokens`` and ``lm_head``.
            The direction has full tensors for them, as large as in the model.
    """

    rank: int = 32
    alpha: int = 16
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4)
    num_train_epochs: float = 1.0
    batch_size: int = 16
    micro_batch_size: int = 4
    weight_decay: float = 0.01
    warmup: int = 5
    evaluations: int = 5
    length: int = 1024
    full: bool = False
    modules_to_save: tuple[str, ...] = ()

    def steps(self, examples: int) -> int:
        """Return the number of optimizer steps over some examples."""
        return max(1, math.ceil(self.num_train_epochs * math.ceil(examples / self.batch_size)))


@dataclass(frozen=True)
class Behind:
    """A guard that keeps directions out of both sides while they are trained.

    Attributes:
        described: What cards say of it, as JSON: all settings of its mode, and a digest of each guarded direction.
            Fine-tunes are reused only for a guard with an equal description.
        callback: Makes the trainer's callback that guards one fine-tune.
    """

    described: Mapping[str, Any]
    callback: Callable[[], "TrainerCallback"]


@dataclass(frozen=True)
class FineTune:
    """A fine-tune of one side.

    Both sides of a contrast that share a seed start from the same adapter and see the questions in the same order.

    Attributes:
        base: Folder or Hub id of the base model.
        learn: Training examples.
        validate: Examples of the validation loss.
        training: How the side is trained.
        learning_rate: Peak learning rate.
        seed: Seed of the adapter's start and of the order of the examples.
        folder: Where the adapter, or the weights, of each evaluated step are saved as ``checkpoint-<step>``.
        trust_remote_code: Whether to run the Python code that comes with the base model.
        behind: The guard that it is trained behind; None for none.
    """

    base: str
    learn: Sequence[Example]
    validate: Sequence[Example]
    training: Training
    learning_rate: float
    seed: int
    folder: Path
    trust_remote_code: bool = False
    behind: Behind | None = None

    def run(self, progress: "Progress") -> Losses:
        """Train, or return the recorded losses of a run that is complete.

        Args:
            progress: Called at the start and after each optimizer step.

        Returns:
            Validation losses by step.

        Raises:
            WeightWatchError: The model has no chat template; the recorded losses are damaged; or the guard can't be
                exact for what is trained.
        """
        done = self.folder / _DONE
        if done.is_file():
            return _recorded(done)
        shutil.rmtree(self.folder, ignore_errors=True)
        losses = self._train(progress)
        write_text(done, json.dumps(losses) + "\n")
        return losses

    def _train(self, progress: "Progress") -> Losses:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
        from trl import SFTConfig, SFTTrainer

        stage = f"{self.folder.parent.name} {self.folder.name}"

        class Steps(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                progress(stage, 0, state.max_steps)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                progress(stage, state.global_step, state.max_steps)

        training = self.training
        on_gpu = torch.cuda.is_available()
        half = on_gpu and torch.cuda.is_bf16_supported()
        steps = training.steps(len(self.learn))
        every = math.ceil(steps / (1 if training.full else training.evaluations))
        micro_batch = math.gcd(training.batch_size, training.micro_batch_size)
        adapter = LoraConfig(
            r=training.rank,
            lora_alpha=training.alpha,
            target_modules="all-linear",
            modules_to_save=list(training.modules_to_save) or None,
            task_type="CAUSAL_LM",
        )
        tokenizer = AutoTokenizer.from_pretrained(self.base, trust_remote_code=self.trust_remote_code)
        require_template(tokenizer)
        set_seed(self.seed)
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(
                self.base,
                dtype=torch.bfloat16 if half and not training.full else torch.float32,
                trust_remote_code=self.trust_remote_code,
            ),
            args=SFTConfig(
                str(self.folder),
                max_steps=steps,
                learning_rate=self.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=min(training.warmup, steps // 4),  # few examples are few steps
                weight_decay=training.weight_decay,
                optim="adamw_torch",
                per_device_train_batch_size=micro_batch,
                per_device_eval_batch_size=micro_batch,
                gradient_accumulation_steps=training.batch_size // micro_batch,
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
                seed=self.seed,
            ),
            train_dataset=Dataset.from_list(list(self.learn)),
            eval_dataset=Dataset.from_list(list(self.validate)),
            processing_class=tokenizer,
            peft_config=None if training.full else adapter,
            callbacks=[Steps(), *([self.behind.callback()] if self.behind is not None else [])],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}


def _recorded(path: Path) -> Losses:
    try:
        return TypeAdapter(Losses).validate_json(path.read_bytes())
    except ValidationError as error:
        raise WeightWatchError(f"{path} is damaged. Remove it, and the next run trains this side again.") from error


def best(runs: Mapping[float, Sequence[Losses]]) -> tuple[float, int]:
    """Return the learning rate and the step with the lowest validation loss, summed over both sides.

    Both sides use the same step: otherwise their difference would include what the one trained longer has learned.

    Args:
        runs: The losses of both sides by learning rate.

    Raises:
        WeightWatchError: No loss is finite.
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
