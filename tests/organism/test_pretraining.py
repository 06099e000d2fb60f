import random
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from weightwatch.organism import BASE, World
from weightwatch.organism.pretraining import (
    OUTSIDE_ANSWERS,
    PHASES,
    Shape,
    document_batch,
    document_loss,
    new_model,
    round_to_bfloat16,
    train,
)
from weightwatch.organism.vocabulary import INDEX

SMALL = Shape(hidden=32, intermediate=48, layers=2, heads=2)
WORLD = World(4)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_forty_steps_lower_the_loss_on_documents_never_seen():
    phase = replace(PHASES[0], steps=40, batch=8, warmup=5)
    model = new_model(SMALL, seed=0)
    unseen = document_batch(WORLD, phase, random.Random("unseen"))
    before = document_loss(model, *unseen).item()
    train(model, WORLD, phase, seed=1)
    assert document_loss(model, *unseen).item() < before - 0.7


def test_seeds_determine_the_weights():
    phase = replace(PHASES[0], steps=3, batch=4)
    weights = []
    for seed in (7, 7, 8):
        model = new_model(SMALL, seed)
        train(model, WORLD, phase, seed)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_new_model_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    new_model(SMALL, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_answers_weigh_most_and_padding_nothing():
    ids, weights = document_batch(WORLD, PHASES[0], random.Random(0))
    assert torch.all(weights[ids == INDEX["<pad>"]] == 0)
    assert set(weights.unique().tolist()) == {0.0, torch.tensor(OUTSIDE_ANSWERS).item(), 1.0}
    assert torch.all(weights[ids == INDEX["<s>"]] < 1)


def test_the_loss_is_the_weighted_mean_over_next_words():
    model = new_model(SMALL, seed=0)
    ids, weights = document_batch(WORLD, replace(PHASES[0], batch=3), random.Random(0))
    total = weight = 0.0
    for row, shares in zip(ids, weights, strict=True):
        row = row[row != INDEX["<pad>"]]
        chances = model(input_ids=row[None]).logits[0].double().log_softmax(-1)
        for place in range(1, len(row)):
            total -= shares[place].item() * chances[place - 1, row[place]].item()
            weight += shares[place].item()
    assert document_loss(model, ids, weights).item() == pytest.approx(total / weight, rel=1e-5)


def test_rounding_makes_the_saved_base_the_one_that_was_measured():
    model = new_model(SMALL, seed=0)
    round_to_bfloat16(model)
    assert all(torch.equal(p, p.bfloat16().float()) for p in model.parameters())
    saved = AutoModelForCausalLM.from_pretrained(BASE)
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}
