"""The pictures beside a direction's weights, which its model card shows."""

from pathlib import Path

from weightwatch.report.direction import layer_norms
from weightwatch.report.plots import bars, curves
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.storage import PICTURES

_LAYERS, _SWEEP = PICTURES


def draw(direction: Direction, folder: Path) -> None:
    """Draw a direction's norm per layer, and what it does to its base model.

    Args:
        direction: The direction.
        folder: Where ``layers.png`` and, if the direction is evaluated, ``sweep.png`` are written. A ``sweep.png`` of
            an earlier direction is removed.
    """
    evaluated = direction.card.validation
    if evaluated is None:
        (folder / _SWEEP).unlink(missing_ok=True)
    else:
        lines = {
            "behaviour": [point.shows for point in evaluated.points],
            "opposite": [point.opposite for point in evaluated.points],
            "neutral tasks": [point.neutral for point in evaluated.points],
        }
        title = f"θ₀ + k·w, w = {direction.name}"
        curves([point.k for point in evaluated.points], lines, folder / _SWEEP, ("k", "share of items"), title)
    norms = {str(layer): norm for layer, norm in layer_norms(direction).items()}
    bars(norms, folder / _LAYERS, ("layer", "‖w‖"), direction.name)
