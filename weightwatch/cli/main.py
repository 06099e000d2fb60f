"""The command line."""

import json
import logging
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightwatch.cli import vector_commands
from weightwatch.cli.build import build
from weightwatch.cli.show import show
from weightwatch.report.quiet import aside
from weightwatch.vectors.errors import WeightWatchError

app = typer.Typer(name="weightwatch", no_args_is_help=True, add_completion=False)

ALERT, BAD_INPUT, FAULT = 1, 2, 3
"""Exit statuses."""


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
    with aside(as_json):
        for run in runs:
            if run.folder.exists() and not (run.folder / "weightwatch").is_dir():
                raise WeightWatchError(
                    f"{run.folder} is there already and is no run of the demo. Pass another --output."
                )
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


@app.command()
def scan(
    what: Annotated[str, typer.Argument(help="A checkpoint, a PEFT adapter, a folder of several, or a Hub id.")],
    direction: Annotated[
        list[str] | None, typer.Option("--direction", "-d", help="Direction to measure against; may be repeated.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Control direction, for the null band of z; may be repeated.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="θ₀: path or Hub id of the base. Default: what the run or adapter names.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings: rules, directions, controls, reference.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for readings and alerts. Default for a run: its weightwatch-scan.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for further checkpoints of a run.")] = False,
    until_idle: Annotated[
        float | None, typer.Option(min=0, help="With --follow: end after so many seconds without a new one.")
    ] = None,
    stop_after: Annotated[int | None, typer.Option(min=1, help="With --follow: end after so many.")] = None,
    poll: Annotated[float, typer.Option(min=0.05, help="With --follow: seconds between two looks.")] = 5.0,
) -> None:
    """Measure checkpoints of any trainer; the exit status is 1 if an alert fired."""
    console = Console(stderr=as_json)
    with console.status("loading torch"):
        from weightwatch.cli.scan import Scanning
    scanning = Scanning(console, Console(stderr=True), direction or [], control or [], config, reference)
    try:
        found = (
            scanning.follow(what, out, poll=poll, until_idle=until_idle, stop_after=stop_after)
            if follow
            else scanning.all(what, out)
        )
    except OSError as error:
        raise WeightWatchError(f"{error}. Make sure that the folders can be read and --out can be written.") from error
    if as_json:
        summary = {"scanned": what, **found.to_json(), "unmeasured": scanning.unmeasured}
        typer.echo(json.dumps(summary, indent=1))
    else:
        scanning.show(found)
    if found.fired:
        raise typer.Exit(ALERT)
    if scanning.unmeasured:
        raise typer.Exit(BAD_INPUT)


app.command()(build)
app.command()(show)
for command in vector_commands.COMMANDS:
    app.command()(command)


def run() -> None:
    """Run the command line; errors that the user can mend are told in one line, others are never taken for an alert."""
    try:
        app()
    except WeightWatchError as error:
        Console(stderr=True).print(f"[bold red]weightwatch:[/bold red] {escape(str(error))}")
        raise SystemExit(BAD_INPUT) from error
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(FAULT) from error
