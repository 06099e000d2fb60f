"""Behaviour directions: building, saving, finding, adding and applying them."""

import logging

from weightwatch.vectors.arithmetic import (
    add,
    compressed,
    cosine,
    cosines,
    inner,
    mean,
    negate,
    orthogonalised,
    scale,
    subtract,
)
from weightwatch.vectors.card import Card
from weightwatch.vectors.catalog import find, packaged
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.hub import push
from weightwatch.vectors.low_rank import Delta, LowRank
from weightwatch.vectors.printable import escaped
from weightwatch.vectors.recipes.neutral import NeutralTasks
from weightwatch.vectors.recipes.recipe import Recipe, packaged_recipes
from weightwatch.vectors.recipes.verdicts import verdict
from weightwatch.vectors.steering.adapter import steer_adapter, steering_adapter
from weightwatch.vectors.steering.checkpoint import steer_checkpoint
from weightwatch.vectors.steering.in_memory import steer, steered

if __name__ != "weightwatch.vectors":
    raise ImportError("Import this package as weightwatch.vectors: under another name its classes would exist twice.")

logging.getLogger("weightwatch").addFilter(escaped)  # the logger of the whole package

__all__ = [
    "Card",
    "Delta",
    "Direction",
    "Fingerprint",
    "LowRank",
    "NeutralTasks",
    "Recipe",
    "WeightWatchError",
    "add",
    "compressed",
    "cosine",
    "cosines",
    "find",
    "inner",
    "mean",
    "negate",
    "orthogonalised",
    "packaged",
    "packaged_recipes",
    "push",
    "scale",
    "steer",
    "steer_adapter",
    "steer_checkpoint",
    "steered",
    "steering_adapter",
    "subtract",
    "verdict",
]
