"""``weightwatch init``: the first files of a project."""

from pathlib import Path
from typing import Annotated

import typer

from weightwatch.cli.files import write
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.")] = Path(),
    model: Annotated[str | None, typer.Option(help="Base model of the training: a folder, or a Hub id.")] = None,
    direction: Annotated[
        list[str] | None, typer.Option("--direction", "-d", help="Direction to watch; may be repeated.")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Control direction; may be repeated. Default: those stored beside the directions."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Optimizer steps between checks.")] = 50,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write commented settings, a training script and a schema for editors. What no option says is asked."""
    screen = console()
    base = model or typer.prompt("Base model (a folder, or a Hub id)")
    named = direction or typer.prompt("Directions to watch (names or paths, with spaces between)").split()
    with screen.status("loading torch"):
        from weightwatch.cli.base_model import base_model
        from weightwatch.starter import SCHEMA, SCRIPT, SETTINGS, schema_text, script, settings
        from weightwatch.vectors.catalog import bank
        from weightwatch.vectors.direction import Direction
    found = [(source, Direction.load(source)) for source in named]
    null = [(source, Direction.load(source).as_control()) for source in control or map(str, bank(named))]
    files = {
        SETTINGS: settings(found, null, every),
        SCRIPT: script(base_model(base)[1]),
        SCHEMA: schema_text(),
    }
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        raise WeightWatchError(f"{folder / there[0]} exists. Pass --force to replace it, or name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightWatchError(f"{folder} can't be written ({error.strerror}). Name another folder.") from error
    write({folder / name: text for name, text in files.items()})
    screen.print(f"Written: {', '.join(printable(folder / name) for name in files)}", soft_wrap=True, markup=False)
    screen.print(f"Next: weightwatch check {printable(folder / SETTINGS)} --model {printable(base)}", soft_wrap=True)
