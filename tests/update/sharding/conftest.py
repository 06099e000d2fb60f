"""A process group of one process, for what is the same in one process and in many."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A gloo group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
