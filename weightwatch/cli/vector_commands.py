"""``weightwatch build`` and ``weightwatch show``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from weightwatch.vectors.direction import Direction

Judged = Annotated[
    str, typer.Option(help="rule (the recipe's own), the address of an OpenAI-compatible endpoint, or a classifier.")
]
JudgeModel = Annotated[str | None, typer.Option(help="Name of the judge at the endpoint. Default: its first.")]
Factors = Annotated[list[float] | None, typer.Option("--factor", help="A k of θ₀ + k·w to try; may be repeated.")]
Near = Annotated[list[str] | None, typer.Option("--control", help="Direction to compare with; may be repeated.")]


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
    seed: Annotated[
        list[int], typer.Option(help="Of the fine-tunes; may be repeated. Not one of a run to be watched.")
    ] = [9001, 9002, 9003],  # noqa: B006
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 32,
    alpha: Annotated[int, typer.Option(min=1, help="LoRA alpha.")] = 16,
    learning_rate: Annotated[list[float], typer.Option(help="To try; may be repeated.")] = [5e-5, 1e-4, 2e-4],  # noqa: B006
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the kept answers.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 16,
    at_once: Annotated[int, typer.Option(min=1, help="Examples in memory at once.")] = 4,
    full: Annotated[bool, typer.Option("--full", help="Train all weights instead of LoRA.")] = False,
    minimum: Annotated[int, typer.Option(min=1, help="Pairs of answers below which nothing is built.")] = 32,
    positive: Annotated[
        list[Path] | None,
        typer.Option(help="A fine-tune on the behaviour that exists: nothing is answered or trained. May be repeated."),
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
        from weightwatch.cli import directions
        from weightwatch.vectors.building import pipeline
        from weightwatch.vectors.building.answers import Sampling
        from weightwatch.vectors.building.fine_tunes import Training
        from weightwatch.vectors.building.judges import chosen
        from weightwatch.vectors.checking.sweep import FACTORS, require_factors
        from weightwatch.vectors.recipes.recipe import Recipe
    wanted, tried = Recipe.load(recipe), factor or FACTORS
    called, base = directions.resolved(model)
    require_factors(tried, wanted)
    others = directions.loaded_controls(control or [])
    folder = directions.out_folder(wanted, called, out)
    with directions.progress(Console(stderr=True)) as report:
        if positive or negative:
            referee = directions.referee(wanted, judge, judge_model)
            built = directions.of_sides(positive or [], negative or [], wanted, base, called)
        else:
            referee = chosen(wanted, judge, judge_model)
            settings = pipeline.Settings(
                sampling=Sampling(samples, tokens, temperature, answers_at_once),
                training=Training(rank, alpha, tuple(learning_rate), epochs, batch, at_once, full=full),
                seeds=tuple(seed),
                minimum=minimum,
            )
            built = pipeline.build(wanted, base, folder / directions.BUILD, referee, settings, report, called)
        directions.built_into(built.direction, folder)  # what is built is kept, whatever the check meets
        checked = directions.check(
            built.direction,
            wanted,
            base,
            factors=tried,
            judge=referee,
            seeds=built.seeds,
            others=others,
            report=report,
        )
    direction = built.direction.validated(checked)
    _tell(direction, console, as_json)
    directions.note(direction, folder)
    console.print(f"The direction is in {folder}; watch it with that as its name.", markup=False, soft_wrap=True)


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
        from weightwatch.cli import directions
        from weightwatch.vectors.direction import Direction
    found = Direction.load(direction)
    if check:
        found = directions.checked_anew(found, model, recipe, judge, judge_model, factor, control or [])
    _tell(found, console, as_json)
    if check and Path(direction).is_dir():
        directions.note(found, Path(direction))
    elif check:
        console.print(f"{direction} is no folder of yours, so that this is not kept in its card.", markup=False)


def _tell(direction: "Direction", console: Console, as_json: bool) -> None:
    """Print a direction's card, or what stands in it."""
    from weightwatch.report import direction as table

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
