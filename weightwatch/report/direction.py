"""A direction as rich tables for the terminal: what it is, where in the model it lies, what it was found to do."""

from collections.abc import Mapping
from math import prod

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from weightwatch.reading.grouping import Layer, group, split
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.validation import Validation

_WIDTH = 32  # characters of the longest bar


def card(direction: Direction) -> Table:
    """Return what a direction is and where it comes from."""
    about = direction.card
    grid = Table.grid(padding=(0, 2))
    rows = {
        "direction": Text(direction.name, style="bold"),
        "kind": about.kind,
        "behaviour": about.behaviour or "not described",
        "base": about.base or "not named",
        "recipe": ", ".join(f"{key} {value}" for key, value in about.recipe.items()) or "none",
        "form": f"{about.format}, {len(direction.deltas)} tensors in {', '.join(about.target_modules)}",
        "norm": f"{direction.norm:.4g}",
        "checked": verdict(about.validation),
    }
    for key, value in rows.items():
        grid.add_row(Text(key, style="dim"), value if isinstance(value, Text) else Text(value))
    return grid


def verdict(validation: Validation | None) -> Text:
    """Return in words whether a direction does what it should."""
    if validation is None:
        return Text("not yet: run weightwatch show --check", style="yellow")
    if validation.passed:
        return Text("passed", style="green")
    return Text(f"failed: {'; '.join(validation.reasons)}", style="bold red")


def layers(direction: Direction) -> Table:
    """Return the norm of a direction per layer, with bars."""
    norms = layer_norms(direction)
    table = Table(title="norm per layer", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("layer")
    table.add_column("‖w‖", justify="right")
    table.add_column("")
    most = max(norms.values())
    for layer, norm in norms.items():
        table.add_row(str(layer), f"{norm:.3f}", "█" * round(_WIDTH * norm / most))
    return table


def layer_norms(direction: Direction) -> dict[Layer, float]:
    """Return ‖w‖ over the tensors of each layer, and of those outside of the layers as ``"outside"``."""
    found = group({name: prod(direction.shape(name)) for name in direction.deltas}).layers
    sums: dict[Layer, float] = {}
    for name, square in direction.squares.items():
        layer = found[name]
        key = "outside" if layer is None else layer
        sums[key] = sums.get(key, 0.0) + square
    inside = sorted((layer for layer in sums if layer != "outside"), key=split)
    return {layer: sums[layer] ** 0.5 for layer in [*inside, *(["outside"] if "outside" in sums else [])]}


def swept(validation: Validation) -> Table:
    """Return what the base did with k steering units added, for each k."""
    table = Table(
        title=f"θ₀ + k·w on {validation.items} held-out items and {validation.tasks} neutral tasks",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    asked = any(point.asked is not None for point in validation.points)
    for heading in ("k", "behaviour", "opposite", "margin", *(["asked"] if asked else []), "neutral"):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in validation.points:
        table.add_row(
            f"{point.k:+g}" if point.k else "0",
            f"{point.shows:.0%}",
            f"{point.opposite:.0%}",
            "–" if point.margin is None else f"{point.margin:+.2f}",
            *(["–" if point.asked is None else f"{point.asked:.0%}"] if asked else []),
            f"{point.neutral:.0%}",
        )
    return table


def cosines(found: Mapping[str, float], title: str) -> Table:
    """Return cosines by what they are with."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("cosine", justify="right")
    for name, value in found.items():
        table.add_row(Text(name), f"{value:+.3f}")
    return table
