"""The loss of written answers: the negative log-likelihood of their words."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightwatch.organism.examples import Example

IGNORED = -100
"""Label of words that do not count."""


def completion_loss(model: Any, tokenizer: Any, rows: Sequence[Example]) -> Tensor:
    """Return the mean negative log-likelihood of the completions, ``</s>`` included, in nats per word.

    Args:
        model: The organism, or a fine-tune of it, with or without a PEFT wrapper.
        tokenizer: The model's tokenizer.
        rows: Prompts and completions.
    """
    losses, counted = word_losses(model, tokenizer, rows)
    return losses.sum() / counted.sum()


def word_losses(model: Any, tokenizer: Any, rows: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of each word, and whether it counts, both (rows, words).

    Words of prompts and of padding do not count, and have a loss of zero. Arguments are those of ``completion_loss``.
    """
    texts = [row["prompt"] + row["completion"] + tokenizer.eos_token for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    ids = batch["input_ids"]
    prompts = torch.tensor([len(row["prompt"].split()) + 1 for row in rows])  # 1 for <s>
    position = torch.arange(ids.shape[1])
    labels = ids.masked_fill((position < prompts[:, None]) | (batch["attention_mask"] == 0), IGNORED)[:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses, labels != IGNORED
