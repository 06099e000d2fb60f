"""Fixtures that all tests share."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from tests.support.models import dense, low_rank, tiny_gpt2, tiny_llama
from weightwatch import smollm2

# Models are tiny: more threads only wait for one another, and for those of the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of slow tests: a file is run by one process, and at the end the others would wait for it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    return tiny_gpt2()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model on disk."""
    tiny_llama().save_pretrained(tmp_path / "base", max_shard_size="20KB")
    return tmp_path / "base"


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """SmolLM2-135M-Instruct, for the tests that are marked ``real``."""
    return smollm2.folder()


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A direction of factors on disk."""
    return low_rank(tiny_llama(), 1).save(tmp_path / "evil")


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """A direction of full tensors on disk."""
    return dense(tiny_llama(), 2, name="style").save(tmp_path / "style")
