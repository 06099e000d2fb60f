"""Processes that the tests of a world size share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.engines import base
from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def processes(request: pytest.FixtureRequest) -> Iterator[Processes]:
    """A group of as many processes as the test's parameter says."""
    group = Processes(request.param)
    yield group
    group.stop()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the engines that cut the model while they load it."""
    folder = tmp_path_factory.mktemp("base")
    base("tp").save_pretrained(folder)
    return folder
