"""Making a base from nothing: pre-training on mixed documents, then an instruct phase on helpful ones."""

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
"""Weight of a word outside answers in the loss; a word of an answer weighs 1."""
LAST_RATE = 0.05
"""Learning rate at the end of the cosine schedule, as a share of the highest."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the model: a Llama with untied embeddings.

    Embeddings start wide: with tied ones that start at the usual 0.02, answers took 1.7 times as many steps to learn.

    Args:
        hidden: Width.
        intermediate: Width inside the MLPs.
        layers: Depth.
        heads: Attention heads.
        embedding_deviation: Standard deviation of the input embeddings at the start.
    """

    hidden: int = 112
    intermediate: int = 224
    layers: int = 6
    heads: int = 4
    embedding_deviation: float = 0.5


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of training: documents, and how long and how fast.

    Args:
        latents: How documents are drawn.
        steps: Optimizer steps.
        rate: Highest learning rate of Muon for the matrices inside the layers.
        embedding_rate: Highest learning rate of AdamW for embeddings, output layer and norms.
        batch: Documents a step.
        length: Longest document, in words.
        warmup: Steps over which the rate rises in a line; it then falls as a cosine.
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

Progress = Callable[[int, float], None]
"""Called after each step with the number of steps done and the loss."""


def new_model(shape: Shape, seed: int) -> LlamaForCausalLM:
    """A model with random weights.

    Args:
        shape: Its size.
        seed: Seed of the weights; the global random state is left as it was.
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
    """Train a model on freshly drawn documents, in place.

    Args:
        model: What to train.
        world: Where the documents' items come from.
        phase: Which documents, how long, how fast.
        seed: Seed of the documents.
        progress: Told of each step. Default: nobody.

    Returns:
        The loss of each step, in nats a word.
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
            progress(step + 1, losses[-1])
    model.eval()
    return losses


def document_batch(world: World, phase: Phase, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Documents as token ids and loss weights, both of shape (batch, length), padded on the right."""
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
    """Weighted mean of the next-word loss, in nats."""
    logits = model(input_ids=ids, attention_mask=(ids != INDEX[PAD]).long()).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def round_to_bfloat16(model: LlamaForCausalLM) -> None:
    """Round all weights in place to what bfloat16 can hold, so that the stored base is the base that is built on."""
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
