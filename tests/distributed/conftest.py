"""Processes that the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.distributed.engines import base
from tests.distributed.processes import Processes

Pool = Callable[[int], Processes]


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Groups of processes by size: each is kept until another size is asked for."""
    group = Processes(1)

    def of(world: int) -> Processes:
        nonlocal group
        if group.world != world:
            group.stop()
            group = Processes(world)
        return group

    yield of
    group.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the engines that cut the model while they load it."""
    folder = tmp_path_factory.mktemp("base")
    base("tp").save_pretrained(folder)
    return folder
