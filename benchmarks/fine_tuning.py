"""What the benchmarks' own training loops share: DPO's loss on the organism, and the order of the examples."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from weightwatch.organism import Example
from weightwatch.organism.loss import word_losses

BETA = 0.1
"""TRL's default weight of DPO's penalty."""


class Preference(TypedDict):
    """A prompt with the answer that is preferred, and the one that is not."""

    prompt: str
    chosen: str
    rejected: str


def preference_loss(model: Any, tokenizer: Any, rows: Sequence[Preference]) -> Tensor:
    """Return the loss of DPO (arXiv 2305.18290) against the model without its adapter.

    It is the mean of −log σ(β (r(chosen) − r(rejected))), r(y) = log π(y|x) − log π₀(y|x), β = ``BETA``.
    """
    chosen, rejected = (
        [Example(prompt=row["prompt"], completion=text) for row, text in zip(rows, texts, strict=True)]
        for texts in ([row["chosen"] for row in rows], [row["rejected"] for row in rows])
    )
    both = [*chosen, *rejected]
    with torch.no_grad(), model.disable_adapter():
        before = word_losses(model, tokenizer, both)[0].sum(1)
    better, worse = (before - word_losses(model, tokenizer, both)[0].sum(1)).chunk(2)
    return -logsigmoid(BETA * (better - worse)).mean()


def shuffled_batches(examples: Sequence[Mapping[str, str]], size: int, seed: int) -> Iterator[list[Any]]:
    """Yield batches of examples without end. Each example comes once before any comes again."""
    rng = random.Random(seed)
    remaining: list[Any] = []
    while True:
        if len(remaining) < size:
            remaining = rng.sample(list(examples), len(examples))
        yield [remaining.pop() for _ in range(size)]
