"""The command line."""

import json
import logging
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightwatch.vectors.errors import WeightWatchError

if TYPE_CHECKING:
    from weightwatch.vectors.direction import Direction

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
        from weightwatch.scanning import Scanning
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


Judged = Annotated[
    str, typer.Option(help="rule (the recipe's own), the address of an OpenAI-compatible endpoint, or a classifier.")
]
JudgeModel = Annotated[str | None, typer.Option(help="Name of the judge at the endpoint. Default: its first.")]
Factors = Annotated[list[float] | None, typer.Option("--factor", help="A k of θ₀ + k·w to try; may be repeated.")]
Near = Annotated[list[str] | None, typer.Option("--control", help="Direction to compare with; may be repeated.")]


@app.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe, or the path of a YAML file.")],
    model: Annotated[str, typer.Option(help="The base: a folder, a Hub id, or organism, the packaged one.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the direction. Default: directions/<recipe>.")] = None,
    judge: Judged = "rule",
    judge_model: JudgeModel = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each question under each system prompt.")] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers.")] = 1.0,
    answers_at_once: Annotated[int, typer.Option(min=1, help="Answers drawn in a batch.")] = 32,
    seed: Annotated[list[int], typer.Option(help="Of the fine-tunes; may be repeated.")] = [0, 1, 2],  # noqa: B006
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 32,
    alpha: Annotated[int, typer.Option(min=1, help="LoRA alpha.")] = 16,
    learning_rate: Annotated[list[float], typer.Option(help="To try; may be repeated.")] = [5e-5, 1e-4, 2e-4],  # noqa: B006
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the kept answers.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 16,
    at_once: Annotated[int, typer.Option(min=1, help="Examples in memory at once.")] = 4,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    minimum: Annotated[int, typer.Option(min=1, help="Pairs of answers below which nothing is built.")] = 32,
    positive: Annotated[
        list[Path] | None, typer.Option(help="A fine-tune on the behaviour that exists already; may be repeated.")
    ] = None,
    negative: Annotated[list[Path] | None, typer.Option(help="The one on its opposite, in the same order.")] = None,
    factor: Factors = None,
    control: Near = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the direction's card as JSON, and nothing else.")
    ] = False,
) -> None:
    """Build a behaviour direction from a recipe, and check it; a later call goes on where an earlier one ended."""
    console = Console(stderr=as_json)
    with console.status("loading torch, transformers and trl"):
        from weightwatch import directions
        from weightwatch.vectors.building import pipeline
        from weightwatch.vectors.building.answers import Sampling
        from weightwatch.vectors.building.fine_tunes import Training
        from weightwatch.vectors.building.judges import chosen
        from weightwatch.vectors.checking.sweep import FACTORS
        from weightwatch.vectors.direction import Direction
        from weightwatch.vectors.recipe import Recipe
    wanted = Recipe.load(recipe)
    others = [Direction.load(name) for name in control or []]
    folder, base = out or Path("directions", wanted.name), directions.model_path(model)
    with directions.progress(Console(stderr=True)) as report:
        if positive or negative:
            referee = None
            built = directions.of_sides(positive or [], negative or [], wanted, base)
        else:
            referee = chosen(wanted, judge, judge_model)
            settings = pipeline.Settings(
                sampling=Sampling(samples, tokens, temperature, answers_at_once),
                training=Training(rank, alpha, tuple(learning_rate), epochs, batch, at_once, full=full),
                seeds=tuple(seed),
                minimum=minimum,
            )
            built = pipeline.build(wanted, base, folder / directions.BUILD, referee, settings, report)
        built.direction.save(folder)  # what is built is kept, whatever the check meets
        checked = directions.check(
            built.direction,
            wanted,
            base,
            factors=factor or FACTORS,
            judge=referee,
            seeds=built.seeds,
            others=others,
            report=report,
        )
    direction = built.direction.validated(checked)
    direction.save(folder)
    _tell(direction, console, as_json)
    console.print(f"The direction is in [bold]{folder}[/bold]; watch it with [bold]{folder}[/bold] as its name.")


@app.command()
def show(
    direction: Annotated[str, typer.Argument(help="A folder, a Hub id, or the name of a packaged direction.")],
    check: Annotated[
        bool, typer.Option("--check", help="Ask the base, steered by it, and keep what is found.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="With --check: the base. Default: the one it names.")] = None,
    recipe: Annotated[str | None, typer.Option(help="With --check: whose items. Default: the one it names.")] = None,
    judge: Judged = "rule",
    judge_model: JudgeModel = None,
    factor: Factors = None,
    control: Near = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON, and nothing else.")] = False,
) -> None:
    """Show what a direction is, where in the model it lies, and what it was found to do."""
    console = Console(stderr=as_json)
    with console.status("loading torch"):
        from weightwatch import directions
        from weightwatch.vectors.direction import Direction
    found = Direction.load(direction)
    if check:
        found = directions.checked_anew(found, direction, model, recipe, judge, judge_model, factor, control or [])
    _tell(found, console, as_json)


def _tell(direction: "Direction", console: Console, as_json: bool) -> None:
    """Print a direction's card, or what stands in it."""
    from weightwatch import direction_table as table

    if as_json:
        layers = {str(layer): norm for layer, norm in table.layer_norms(direction).items()}
        typer.echo(json.dumps({**direction.card.model_dump(mode="json"), "layers": layers}, indent=1))
        return
    console.print(table.card(direction))
    console.print(table.layers(direction))
    checked = direction.card.validation
    if checked is not None:
        console.print(table.swept(checked))
        for title, cosines in (("seeds with each other", checked.seeds), ("with other directions", checked.others)):
            if cosines:
                console.print(table.cosines(cosines, title))


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
