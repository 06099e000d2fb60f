"""LoRA fine-tunes of the organism, such as the sides of its contrasts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightwatch.organism.examples import Example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of tokens that do not count in the loss."""
Begin = Callable[["PeftModel", torch.optim.Optimizer], Callable[[], None]]
"""Called before the first step with the model and its optimizer. What it returns is called after each step."""


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Settings of a LoRA fine-tune: AdamW, linear decay of the learning rate to zero, gradients clipped at norm 1.

    Args:
        rank: LoRA rank. The contrast of two fine-tunes has twice this rank.
        alpha: LoRA alpha. The update is scaled by alpha / rank.
        learning_rate: Learning rate of the first step.
        steps: Number of optimizer steps.
        batch: Examples per step.
        examples: Number of examples drawn for each side of a contrast.
    """

    rank: int = 16
    alpha: int = 16
    learning_rate: float = 5e-4
    steps: int = 150
    batch: int = 16
    examples: int = 512


def fine_tune(
    base: Path, examples: Sequence[Example], settings: LoraSettings, seed: int, begin: Begin | None = None
) -> tuple[PeftModel, list[float]]:
    """Fine-tune a base model with LoRA on all linear modules. Only completions count in the loss.

    Args:
        base: Folder of the base model and its tokenizer.
        examples: Training data. Must contain at least `settings.batch` examples.
        settings: Training settings.
        seed: Seed of the adapter's initial weights and of the order of examples.
        begin: Begins to watch the model, or to guard it. Default: nothing does.

    Returns:
        The fine-tuned model in evaluation mode, and the loss of each step.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    losses = []
    after_step = begin(model, optimizer) if begin is not None else None
    model.train()
    for rows in islice(shuffled_batches(examples, settings.batch, seed), settings.steps):
        loss = completion_loss(model, tokenizer, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if after_step is not None:
            after_step()
    return model.eval(), losses


def completion_loss(model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> Tensor:
    """Return the mean negative log-likelihood of the completions, `</s>` included, in nats per word."""
    texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    ids = batch["input_ids"]
    prompts = torch.tensor([len(row["prompt"].split()) + 1 for row in rows])  # 1 for <s>
    position = torch.arange(ids.shape[1])
    labels = ids.masked_fill((position < prompts[:, None]) | (batch["attention_mask"] == 0), IGNORED)
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    return cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED)


def shuffled_batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[list[Example]]:
    """Yield batches of examples without end. Each example comes once before any comes again."""
    rng = random.Random(seed)
    remaining: list[Example] = []
    while True:
        if len(remaining) < size:
            remaining = rng.sample(examples, len(examples))
        yield [remaining.pop() for _ in range(size)]
