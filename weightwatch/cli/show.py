"""``weightwatch show``: what is known about a direction, or about a run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightwatch.cli.options import Coefficients, Controls, FullCheck, JudgeModel, JudgeName, TrustRemoteCode
from weightwatch.report.console import console

if TYPE_CHECKING:
    from rich.console import Console

    from weightwatch.record.recorded_run import RecordedRun
    from weightwatch.vectors.direction import Direction
    from weightwatch.vectors.recipes.recipe import Recipe


def show(
    direction: Annotated[
        str,
        typer.Argument(metavar="DIRECTION|RUN", help="A direction (folder, Hub id, packaged name), or a run's folder."),
    ],
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Evaluate the direction on its base model, and save the result in its card."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="With --evaluate: base model. Default: the one that the card names.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="With --evaluate: recipe with the items. Default: the one that the card names.")
    ] = None,
    judge: JudgeName = "rule",
    judge_model: JudgeModel = None,
    coefficient: Coefficients = None,
    full_check: FullCheck = False,
    control: Controls = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the card as JSON, and nothing else.")] = False,
) -> None:
    """Show what a direction is, its norm in each layer, and what it does to its base model; or where a run stands."""
    screen = console(stderr=as_json)
    with screen.status("loading torch"):
        from weightwatch.record.recorded_run import RecordedRun, record_of
        from weightwatch.vectors.direction import Direction
    if not evaluate and record_of(Path(direction)) is not None:
        _tell_run(RecordedRun.of(Path(direction)), screen, as_json)
        return
    found = Direction.load(direction)
    if not evaluate:
        tell(found, screen, as_json)
        return
    with screen.status("loading transformers"):
        import torch

        from weightwatch.cli.base_model import base_model
        from weightwatch.cli.progress import stages
        from weightwatch.report.pictures import draw
        from weightwatch.vectors.building.output import STAGES
        from weightwatch.vectors.evaluation import evaluate as evaluation
        from weightwatch.vectors.judges.choice import chosen_if_any
        from weightwatch.vectors.printable import printable
    base, wanted = evaluation.recorded(found, model, recipe, Path(direction) / STAGES)
    others = evaluation.load_controls(control or [])
    with stages(console(stderr=True)) as progress:
        found = evaluation.evaluate(
            found,
            wanted,
            base_model(base)[1],
            coefficients=coefficient,
            quick=not (full_check or torch.cuda.is_available()),
            judge=chosen_if_any(wanted, judge, judge_model),
            others=others,
            progress=progress,
            trust_remote_code=trust_remote_code,
        )
    tell(found, screen, as_json, wanted)
    folder = Path(direction)
    if folder.is_dir():
        draw(found, folder)
        found.save_card(folder)
    else:
        screen.print(f"{printable(direction)} is not a local folder, so the result is not saved.")


def _tell_run(run: "RecordedRun", screen: "Console", as_json: bool) -> None:
    """Print where a run stands: its newest figures, its peaks and alerts."""
    from weightwatch.report.base import Outcome
    from weightwatch.report.terminal import ClosingTable

    if as_json:
        typer.echo(json.dumps(run.to_json(), indent=1))
        return
    screen.print(ClosingTable(Outcome(run.last, run.peaks, run.alerts, run.taken)))
    fires = ", ".join(run.firing) or "no rule"
    state = "goes on" if run.live else "is not being recorded now"
    screen.print(f"{run.checks} checks; the run {state}; firing: {fires}", markup=False, soft_wrap=True)
    for alert in run.alerts:
        screen.print(alert.describe(), markup=False, highlight=False, soft_wrap=True)


def tell(direction: "Direction", screen: "Console", as_json: bool, recipe: "Recipe | None" = None) -> None:
    """Print a direction's card, as tables or as JSON; and what to try next, if it failed with a recipe just now."""
    from weightwatch.report.direction import document, tables
    from weightwatch.vectors.evaluation.advice import next_steps

    if as_json:
        typer.echo(json.dumps(document(direction), indent=1))
    else:
        screen.print(*tables(direction))
    if recipe is not None and direction.card.validation is not None:
        for step in next_steps(direction.card.validation.points, recipe):
            screen.print(f"Next: {step}", soft_wrap=True, markup=False, highlight=False)
