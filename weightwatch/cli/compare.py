"""``weightwatch compare``: cosines between directions and task vectors."""

import json
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from weightwatch.cli.options import AsJson
from weightwatch.report.console import console

if TYPE_CHECKING:
    from weightwatch.comparison import Comparison


def compare(
    what: Annotated[list[str], typer.Argument(help="Directions, and adapters or checkpoints as task vectors.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="What the fine-tunes started from: a folder, a Hub id in the local cache, organism or smollm2."
        ),
    ] = None,
    as_json: AsJson = False,
    picture: Annotated[Path | None, typer.Option(help="File for a heat map of the cosines (.png, .svg, .pdf).")] = None,
) -> None:
    """Show the cosines between directions and the task vectors of fine-tunes."""
    screen = console(stderr=as_json)
    with screen.status("loading torch"):
        from weightwatch.cli.base_model import base_model
        from weightwatch.comparison import Comparison
    with console(stderr=True).status("reading"):
        found = Comparison.of(what, base_model(base)[1] if base is not None else None)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        screen.print(_table(found))
    if picture is not None:
        from weightwatch.report.plots import heat_map

        heat_map(found.names, found.cosines, picture)


def _table(found: "Comparison") -> Table:
    """Return the cosines as a table whose columns are numbered like its rows."""
    from weightwatch.report.terminal import number
    from weightwatch.vectors.printable import printable

    table = Table(title="weightwatch compare: cosines", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("name", overflow="fold")
    table.add_column("norm", justify="right")
    for i, _ in enumerate(found.names, 1):
        table.add_column(str(i), justify="right", no_wrap=True)
    for i, (name, norm, row) in enumerate(zip(found.names, found.norms, found.cosines, strict=True), 1):
        figures = [number(None if isnan(value) else value) for value in row]
        table.add_row(str(i), Text(printable(name)), f"{norm:.3g}", *figures)
    return table
