"""The command line."""

import json
import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightwatch.vectors.errors import WeightWatchError

app = typer.Typer(name="weightwatch", no_args_is_help=True, add_completion=False)

BAD_INPUT = 2
"""Exit status."""


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weightwatch {version('weightwatch')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Show how far a fine-tune moves a language model's weights along behaviour directions."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Seed of the data, the adapter and the order of examples.")] = 0,
    poison: Annotated[float, typer.Option(min=0, max=1, help="Share of harmful examples in the second run.")] = 0.25,
    output: Annotated[Path, typer.Option(help="Folder for what the runs write.")] = Path("weightwatch-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Save what was shown as an SVG picture.")] = None,
) -> None:
    """Fine-tune a small model on benign and on partly harmful data, and catch the one that goes bad."""
    console = Console(record=True, stderr=as_json, quiet=as_json)
    logging.getLogger("weightwatch").setLevel(logging.CRITICAL + 1)  # the tables show the alerts
    with console.status("loading torch, transformers and trl"):
        from weightwatch.demo import view
        from weightwatch.demo.run import Run, fine_tune, roll_back
    console.print(view.LEGEND)
    runs = [Run("benign", 0.0, output / "benign"), Run("poisoned", poison, output / "poisoned")]
    for run in runs:
        if run.folder.exists() and not (run.folder / "weightwatch").is_dir():
            raise WeightWatchError(f"{run.folder} is there already and is no run of the demo. Pass another --output.")
        shutil.rmtree(run.folder, ignore_errors=True)
        with view.live(console, run) as show:
            fine_tune(run, seed, show)
        roll_back(run)
    console.print(view.verdict(runs))
    look = f"tensorboard --logdir {output}"
    console.print(f"Every layer, in the browser: [bold]{look}[/bold]   Readings: {output}/poisoned/weightwatch/")
    if picture is not None:
        console.save_svg(str(picture), title="weightwatch demo")
    if as_json:
        typer.echo(json.dumps({"seed": seed, "runs": [run.to_json() for run in runs], "tensorboard": look}, indent=1))


def run() -> None:
    """Run the command line; errors that the user can mend are told in one line."""
    try:
        app()
    except WeightWatchError as error:
        Console(stderr=True).print(f"[bold red]weightwatch:[/bold red] {escape(str(error))}")
        raise SystemExit(BAD_INPUT) from error
