"""The command line: its commands, and the exit status of errors."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightwatch.cli.build import build
from weightwatch.cli.compare import compare
from weightwatch.cli.demo import demo
from weightwatch.cli.exit_status import BAD_INPUT, FAULT
from weightwatch.cli.push import push
from weightwatch.cli.scan import scan
from weightwatch.cli.show import show
from weightwatch.cli.steer import steer
from weightwatch.vectors.errors import WeightWatchError

app = typer.Typer(name="weightwatch", no_args_is_help=True, add_completion=False)


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


for command in (demo, build, show, compare, scan, steer, push):  # the order of --help
    app.command()(command)


def run() -> None:
    """Run the command line.

    A ``WeightWatchError`` prints one message and exits with 2. Any other exception prints its traceback and exits with
    3, because 1 means that an alert fired.
    """
    try:
        app()
    except WeightWatchError as error:
        Console(stderr=True).print(f"[bold red]weightwatch:[/bold red] {escape(str(error))}")
        raise SystemExit(BAD_INPUT) from error
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(FAULT) from error
