"""A direction as tables for the terminal, and as a JSON document."""

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from weightwatch.reading.grouping import Layer, group, split
from weightwatch.report.terminal import number
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.printable import printable
from weightwatch.vectors.validation import Validation

_WIDTH = 32  # characters of the longest bar


def document(direction: Direction) -> dict[str, Any]:
    """Return a direction's card, and its norm per layer as ``layers``, as a JSON document."""
    layers = {str(layer): norm for layer, norm in layer_norms(direction).items()}
    return {**direction.card.model_dump(mode="json"), "layers": layers}


def tables(direction: Direction) -> Iterator[Table]:
    """Yield tables of what a direction is, its norm per layer, and the results of its evaluation."""
    yield _card(direction)
    yield _layers(direction)
    evaluated = direction.card.validation
    if evaluated is not None:
        yield _sweep(evaluated)
        if evaluated.seeds:
            yield _cosines(evaluated.seeds, "seeds with each other")
        if evaluated.others:
            yield _cosines(evaluated.others, "with other directions")


def layer_norms(direction: Direction) -> dict[Layer, float]:
    """Return ‖w‖ over the tensors of each layer, and over the tensors outside the layers as ``"outside"``."""
    found = group({name: prod(direction.shape(name)) for name in direction.deltas}).layers
    sums: dict[Layer, float] = {}
    for name, square in direction.squares.items():
        layer = found[name]
        key = "outside" if layer is None else layer
        sums[key] = sums.get(key, 0.0) + square
    inside = sorted((layer for layer in sums if layer != "outside"), key=split)
    return {layer: sums[layer] ** 0.5 for layer in [*inside, *(["outside"] if "outside" in sums else [])]}


def _card(direction: Direction) -> Table:
    about = direction.card
    grid = Table.grid(padding=(0, 2))
    rows = {
        "direction": Text(printable(direction.name), style="bold"),
        "kind": about.kind,
        "behaviour": about.behaviour or "not described",
        "base": about.base or "not named",
        "recipe": ", ".join(f"{key} {value}" for key, value in about.recipe.items()) or "none",
        **(
            {"guard": f"built behind {_guard(about.hyperparameters['guard'])}"}
            if "guard" in about.hyperparameters
            else {}
        ),
        "form": f"{about.format}, {len(direction.deltas)} tensors in {', '.join(about.target_modules)}",
        "norm": f"{direction.norm:.4g}",
        "evaluated": _verdict(about.validation),
    }
    for key, value in rows.items():
        grid.add_row(Text(key, style="dim"), value if isinstance(value, Text) else Text(printable(value)))
    return grid


def _guard(settings: Any) -> str:
    """Return what a card says of the guard behind which a direction was built, without the digests."""
    if not isinstance(settings, dict):
        return str(settings)
    shown = {
        key: (", ".join(map(str, value)) or "all") if isinstance(value, dict | list) else value
        for key, value in settings.items()
    }
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _verdict(validation: Validation | None) -> Text:
    if validation is None:
        return Text("not yet; run weightwatch show --evaluate", style="yellow")
    if validation.passed:
        return Text("passed", style="green")
    return Text(printable(f"failed: {'; '.join(validation.reasons)}"), style="bold red")


def _layers(direction: Direction) -> Table:
    norms = layer_norms(direction)
    table = Table(title="norm per layer", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("layer")
    table.add_column("‖w‖", justify="right")
    table.add_column("")
    most = max(norms.values())
    for layer, norm in norms.items():
        table.add_row(Text(printable(layer)), f"{norm:.3f}", "█" * round(_WIDTH * norm / most) if most else "")
    return table


def _sweep(validation: Validation) -> Table:
    items = "held-out pairs, in the format it was built from," if validation.same_format else "held-out items"
    table = Table(
        title=f"θ₀ + k·w on {validation.items} {items} and {validation.tasks} neutral tasks",
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


def _cosines(found: Mapping[str, float], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("cosine", justify="right")
    for name, value in found.items():
        table.add_row(Text(printable(name)), number(value))
    return table
