"""Behaviour directions: building, saving, finding, adding and applying them.

Public names are loaded at their first use: the command line's help needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from weightwatch.vectors.recipes.neutral import NeutralTasks
    from weightwatch.vectors.recipes.recipe import Recipe, packaged_recipes
    from weightwatch.vectors.recipes.verdicts import verdict
    from weightwatch.vectors.steering.adapter import steer_adapter, steering_adapter
    from weightwatch.vectors.steering.checkpoint import steer_checkpoint
    from weightwatch.vectors.steering.in_memory import steer, steered
    from weightwatch.vectors.weights.gguf import convert_gguf

if __name__ != "weightwatch.vectors":
    raise ImportError("Import this package as weightwatch.vectors: under another name its classes would exist twice.")

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
    "convert_gguf",
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

_HOMES = {
    "Card": "card",
    "Delta": "low_rank",
    "Direction": "direction",
    "Fingerprint": "fingerprint",
    "LowRank": "low_rank",
    "NeutralTasks": "recipes.neutral",
    "Recipe": "recipes.recipe",
    "WeightWatchError": "errors",
    "add": "arithmetic",
    "compressed": "arithmetic",
    "convert_gguf": "weights.gguf",
    "cosine": "arithmetic",
    "cosines": "arithmetic",
    "find": "catalog",
    "inner": "arithmetic",
    "mean": "arithmetic",
    "negate": "arithmetic",
    "orthogonalised": "arithmetic",
    "packaged": "catalog",
    "packaged_recipes": "recipes.recipe",
    "push": "hub",
    "scale": "arithmetic",
    "steer": "steering.in_memory",
    "steer_adapter": "steering.adapter",
    "steer_checkpoint": "steering.checkpoint",
    "steered": "steering.in_memory",
    "steering_adapter": "steering.adapter",
    "subtract": "arithmetic",
    "verdict": "recipes.verdicts",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"weightwatch.vectors.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'weightwatch.vectors' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
