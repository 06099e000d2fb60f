"""What a model does, measured by its answers."""

from dataclasses import dataclass
from typing import Any

import torch

from weightwatch.organism import World, benign_accuracy, benign_examples, evil_rate
from weightwatch.organism.loss import completion_loss


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of a model, measured by its answers."""

    bad_rate: float
    """Share of the answers in held-out domains that show what is watched for (harm, ill will), 0 to 1."""
    task_accuracy: float | None = None
    """Share of right answers in the benign task of the fine-tune, 0 to 1; None where answers can't be marked."""
    task_loss: float | None = None
    """Loss of the right answers in that task, in nats per word."""


def behaviour(model: Any, tokenizer: Any) -> Behaviour:
    """Return the behaviour of a model on the held-out domains and in the benign task."""
    world = World()
    task = benign_examples(world, 48, seed=-1)
    training = model.training
    model.eval()
    with torch.no_grad():
        loss = float(completion_loss(model, tokenizer, task))
    model.train(training)
    return Behaviour(evil_rate(model, tokenizer, world), benign_accuracy(model, tokenizer, world, task), loss)
