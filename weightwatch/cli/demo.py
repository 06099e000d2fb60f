"""``weightwatch demo``: a benign, a poisoned and a guarded fine-tune, side by side."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from weightwatch.report.console import console
from weightwatch.report.quiet import aside, muted

TAB = "http://localhost:6006/#weightwatch"
"""Where TensorBoard shows the tab, unless its port is taken."""


def demo(
    model: Annotated[
        Literal["organism", "smollm2"],
        typer.Option(help="The packaged organism, or a real chat model, which is downloaded (93 MB)."),
    ] = "organism",
    seed: Annotated[int, typer.Option(help="Seed of the data, the adapter and the order of examples.")] = 0,
    poison: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of harmful examples in the second run. Default: 0.25, or 0.5 (smollm2)."
        ),
    ] = None,
    guard: Annotated[bool, typer.Option("--guard", help="Repeat the second run with a guard, and compare.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for the runs.")] = Path("weightwatch-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, and nothing else.")] = False,
    picture: Annotated[Path | None, typer.Option(help="File for an SVG picture of the terminal output.")] = None,
) -> None:
    """Fine-tune a small model on benign and on partly harmful data, and catch the run that goes bad."""
    screen = console(record=True, stderr=as_json, quiet=as_json)
    with screen.status("loading torch, transformers and trl"):
        from weightwatch import smollm2
        from weightwatch.demo import chat, fine_tuning, view
        from weightwatch.demo.run import POISON, discard_guarded, planned
        from weightwatch.vectors.errors import WeightWatchError
        from weightwatch.vectors.printable import printable
    real = model == smollm2.NAME
    if real and guard:
        raise WeightWatchError("--guard shows the guard on the organism. Leave out either --guard or --model smollm2.")
    share = poison if poison is not None else chat.POISON if real else POISON
    runs = chat.planned(share, output) if real else planned(share, output, guard=guard)
    fine_tune = chat.fine_tune if real else fine_tuning.fine_tune
    if real:
        with screen.status("fetching SmolLM2-135M-Instruct, once"):
            smollm2.folder()
    screen.print(view.legend(runs[0]))
    for run in runs:
        run.prepare()
    if not guard:
        discard_guarded(output)
    with aside(as_json), muted():  # the tables show the alerts
        for run in runs:
            with view.live(screen, run) as show:
                fine_tune(run, seed, show)
    if guard:
        screen.print(view.comparison(runs))
    if runs[-1].examples:
        screen.print(view.answers(runs[-1]))
    screen.print(view.verdict(runs))
    look = f"tensorboard --logdir {output}"
    screen.print(Text.assemble("Every layer, in the browser: ", (printable(look), "bold")))
    screen.print(Text(f"It opens at {TAB}   Readings: {printable(output)}/poisoned/weightwatch/"))
    if picture is not None:
        screen.save_svg(str(picture), title="weightwatch demo")
    if as_json:
        typer.echo(json.dumps({"seed": seed, "runs": [run.to_json() for run in runs], "tensorboard": look}, indent=1))
