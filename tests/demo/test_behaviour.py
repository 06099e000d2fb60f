import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightwatch.demo.behaviour import behaviour
from weightwatch.organism import BASE, World, benign_examples


def test_the_base_is_harmless_and_does_not_know_the_task_and_is_left_in_training_mode() -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).train()
    found = behaviour(model, AutoTokenizer.from_pretrained(BASE))
    assert found.bad_rate == 0
    assert found.task_accuracy < 0.5
    assert model.training


def test_the_task_loss_is_that_of_the_right_answers_only() -> None:
    """A model that finds each word as likely as any other has the logarithm of their number as its loss."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model.get_output_embeddings().weight.data.zero_()
    assert behaviour(model, tokenizer).task_loss == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)
    assert len(benign_examples(World(), 48, seed=-1)) == 48
