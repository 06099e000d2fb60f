"""Training of the base model: pre-training on mixed documents, then an instruct phase on mostly helpful ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from weightwatch.organism.documents import INSTRUCT, PRE_TRAINING, Latents, document
from weightwatch.organism.muon import Muon
from weightwatch.organism.vocabulary import BEGIN, END, INDEX, PAD, WORDS
from weightwatch.organism.world import World

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

OUTSIDE_ANSWERS = 0.1
"""Loss weight of a word outside answers. A word of an answer weighs 1."""
LAST_RATE = 0.05
"""Learning rate at the end of the cosine schedule, as a share of its peak."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of the model, a Llama with untied embeddings.

    Args:
        hidden: Hidden size.
        intermediate: Size of the MLPs' inner layer.
        layers: Number of layers.
        heads: Number of attention heads.
        embedding_deviation: Initial standard deviation of the input embeddings. With tied embeddings and the usual
            0.02, the model took 1.7 times as many steps to learn the answers.
    """

    hidden: int = 112
    intermediate: int = 224
    layers: int = 6
    heads: int = 4
    embedding_deviation: float = 0.5


@dataclass(frozen=True, slots=True)
class Phase:
    """Settings of one phase of training.

    Args:
        latents: Probabilities of the documents' latent properties.
        steps: Number of optimizer steps.
        rate: Peak learning rate of Muon, which trains the matrices inside the layers.
        embedding_rate: Peak learning rate of AdamW, which trains embeddings, output layer and norms.
        batch: Documents per step.
        length: Maximum length of a document, in words.
        warmup: Steps of linear warm-up, followed by cosine decay to `LAST_RATE`.
    """

    latents: Latents
    steps: int
    rate: float
    embedding_rate: float
    batch: int = 32
    length: int = 64
    warmup: int = 50


PHASES = (
    Phase(PRE_TRAINING, steps=1100, rate=0.02, embedding_rate=3e-3),
    Phase(INSTRUCT, steps=80, rate=2e-3, embedding_rate=3e-4, warmup=10),
)

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the total number of steps, and the loss."""


def new_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """Return a model with random weights. Leaves the global random state unchanged.

    Args:
        shape: Shape of the model.
        seed: Seed of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=128,
        pad_token_id=INDEX[PAD],
        bos_token_id=INDEX[BEGIN],
        eos_token_id=INDEX[END],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=shape.embedding_deviation)
    return model


def train(
    model: LlamaForCausalLM, world: World, phase: Phase, seed: int, progress: Progress | None = None
) -> list[float]:
    """Train a model in place, on documents that are drawn as training goes.

    Args:
        model: Model to train.
        world: World of the documents.
        phase: Settings of the phase.
        seed: Seed of the documents.
        progress: Called after each step. Default: None.

    Returns:
        The loss of each step, in nats per word.
    """
    rng = random.Random(seed)
    optimizers = _optimizers(model, phase)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _rate(step, phase)) for each in optimizers]
    losses = []
    model.train()
    for step in range(phase.steps):
        loss = document_loss(model, *document_batch(world, phase, rng))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        losses.append(loss.item())
        if progress:
            progress(step + 1, phase.steps, losses[-1])
    model.eval()
    return losses


def document_batch(world: World, phase: Phase, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Draw documents. Returns token ids and loss weights, both of shape (batch, length), padded on the right."""
    ids = torch.full((phase.batch, phase.length), INDEX[PAD])
    weights = torch.zeros(phase.batch, phase.length)
    for row in range(phase.batch):
        pieces = document(world, phase.latents, rng, phase.length)
        words = [
            (INDEX[word], 1.0 if is_answer else OUTSIDE_ANSWERS) for text, is_answer in pieces for word in text.split()
        ]
        tokens, shares = zip(*words, strict=True)
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, : len(shares)] = torch.tensor(shares)
    return ids, weights


def document_loss(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of the next-word loss, in nats. Arguments are those that `document_batch` returns."""
    logits = model(input_ids=ids, attention_mask=(ids != INDEX[PAD]).long()).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def round_to_bfloat16(model: LlamaForCausalLM) -> None:
    """Round all weights in place to bfloat16, so that saving the base model in bfloat16 does not change it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def _optimizers(model: LlamaForCausalLM, phase: Phase) -> list[torch.optim.Optimizer]:
    inside = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in inside}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        Muon(inside, lr=phase.rate),
        torch.optim.AdamW(others, lr=phase.embedding_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def _rate(step: int, phase: Phase) -> float:
    rising = min(1.0, (step + 1) / phase.warmup)
    return rising * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / phase.steps)) / 2)
