"""The organism, whose answers are known, as a chat model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from weightwatch.organism import BASE


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture(scope="module")
def organism() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
