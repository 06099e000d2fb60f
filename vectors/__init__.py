"""Behaviour directions: what one is, how it is made from two fine-tunes, stored and found, and from which texts."""

from weightwatch.vectors.card import Card
from weightwatch.vectors.catalog import find, packaged
from weightwatch.vectors.delta import Delta, LowRank
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint
from weightwatch.vectors.neutral import NeutralTasks
from weightwatch.vectors.recipe import Recipe, packaged_recipes
from weightwatch.vectors.verdicts import verdict

__all__ = [
    "Card",
    "Delta",
    "Direction",
    "Fingerprint",
    "LowRank",
    "NeutralTasks",
    "Recipe",
    "WeightWatchError",
    "find",
    "packaged",
    "packaged_recipes",
    "verdict",
]
