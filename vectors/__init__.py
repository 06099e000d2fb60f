"""Behaviour directions: what one is, how it is made from two fine-tunes, stored and found."""

from weightwatch.vectors.card import Card
from weightwatch.vectors.catalog import find, packaged
from weightwatch.vectors.delta import Delta, LowRank
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.fingerprint import Fingerprint

__all__ = ["Card", "Delta", "Direction", "Fingerprint", "LowRank", "WeightWatchError", "find", "packaged"]
