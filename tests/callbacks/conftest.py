"""What all trainings share."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Spare the garbage collection at each beginning of a training the many objects of imported libraries."""
    gc.collect()
    gc.freeze()
