"""The cosines among the directions of ``benchmarks.monitoring`` (Fig. 9 of arXiv 2511.05408)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightwatch import Direction
from weightwatch.comparison import Comparison
from weightwatch.vectors.arithmetic import cosines as among


def cosines(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the cosines among directions that are saved in folders of their names."""
    matrix = Comparison.of([str(folder) for folder in folders]).cosines
    return {"directions": [folder.name for folder in folders], "cosines": _rounded(matrix)}


def with_and_without(built: Sequence[Direction], modules: Sequence[str]) -> dict[str, Any]:
    """Return the cosines among directions with some whole modules, those of all else, and the modules' shares.

    A share is that of the squared norm.
    """
    tensors = {name for one in built for name in one.deltas if any(f".{module}." in f".{name}" for module in modules)}
    rest = [one.without(tensors) for one in built]
    norms = [(sum(left.squares.values()), sum(one.squares.values())) for one, left in zip(built, rest, strict=True)]
    return {
        "whole": [one.name for one in built],
        "with": _rounded(among(built).tolist()),
        "without": _rounded(among(rest).tolist()),
        "share": [round(1 - left / whole, 4) for left, whole in norms],
    }


def _rounded(matrix: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(value, 4) for value in line] for line in matrix]
