"""``weightwatch demo``: a benign, a poisoned and a guarded fine-tune, side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from weightwatch.report.console import console
from weightwatch.report.quiet import aside, muted


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the data, the adapter and the order of examples.")] = 0,
    poison: Annotated[float, typer.Option(min=0, max=1, help="Share of harmful examples in the second run.")] = 0.25,
    guard: Annotated[bool, typer.Option("--guard", help="Repeat the second run with a guard, and compare.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("weightwatch-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")] = False,
    picture: Annotated[Path | None, typer.Option(help="File for an SVG picture of the terminal output.")] = None,
) -> None:
    """Fine-tune a small model on benign and on partly harmful data, and catch the run that goes bad."""
    screen = console(record=True, stderr=as_json, quiet=as_json)
    with screen.status("loading torch, transformers and trl"):
        from weightwatch.demo import view
        from weightwatch.demo.fine_tuning import fine_tune, roll_back
        from weightwatch.demo.run import discard_guarded, planned
        from weightwatch.vectors.printable import printable
    screen.print(view.LEGEND)
    runs = planned(poison, output, guard=guard)
    for run in runs:
        run.prepare()
    if not guard:
        discard_guarded(output)
    with aside(as_json), muted():  # the tables show the alerts
        for run in runs:
            with view.live(screen, run) as show:
                fine_tune(run, seed, show)
            roll_back(run)
    if guard:
        screen.print(view.comparison(runs))
    screen.print(view.verdict(runs))
    look = f"tensorboard --logdir {output}"
    record = f"   Readings: {output}/poisoned/weightwatch/"
    screen.print(Text.assemble("Every layer, in the browser: ", (printable(look), "bold"), printable(record)))
    if picture is not None:
        screen.save_svg(str(picture), title="weightwatch demo")
    if as_json:
        typer.echo(json.dumps({"seed": seed, "runs": [run.to_json() for run in runs], "tensorboard": look}, indent=1))
