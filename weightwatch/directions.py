"""What ``weightwatch build`` and ``weightwatch show`` do: a direction from a recipe, and what it is found to do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from weightwatch.direction_table import layer_norms
from weightwatch.quiet import aside, quiet
from weightwatch.vectors.arithmetic import cosine
from weightwatch.vectors.building.judges import RULE, Judge, chosen
from weightwatch.vectors.building.pipeline import Built, contrasted, joined
from weightwatch.vectors.catalog import find
from weightwatch.vectors.checking.sweep import FACTORS, sweep, validated
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.loading import load_model
from weightwatch.vectors.recipe import Recipe
from weightwatch.vectors.validation import Validation
from weightwatch.vectors.verdicts import ModelJudge

if TYPE_CHECKING:
    from weightwatch.vectors.building.answers import Report

BUILD = "build"
"""Folder within a direction's in which the stages of its build leave their files."""
ORGANISM = "weightwatch/organism"
"""What cards call the packaged model; ``organism`` for short, where no folder is called so."""


def resolved(name: str) -> tuple[str, str]:
    """Return what cards call a model, and what it is loaded from."""
    from weightwatch.organism import BASE

    if name in (ORGANISM, "organism") and not (Path(name) / "config.json").is_file():
        return ORGANISM, str(BASE)
    return name, name


def of_sides(positive: Sequence[Path], negative: Sequence[Path], recipe: Recipe, base: str, called: str) -> Built:
    """Return the direction of fine-tunes that exist already, in pairs.

    Raises:
        WeightWatchError: Not as many positive as negative ones; see ``contrasted``.
    """
    if len(positive) != len(negative):
        raise WeightWatchError(
            f"{len(positive)} --positive and {len(negative)} --negative: give them in pairs, one of each for each seed."
        )
    card = {"base": called, "kind": recipe.kind, "behaviour": recipe.behaviour, "recipe": recipe.reference}
    pairs = zip(positive, negative, strict=True)
    names = [recipe.name] if len(positive) == 1 else [f"{recipe.name}-{number}" for number in range(len(positive))]
    each = tuple(
        contrasted(plus, minus, base=base, name=name, metadata=card)
        for name, (plus, minus) in zip(names, pairs, strict=True)
    )
    return Built(joined(each, recipe.name), each)


def check(
    direction: Direction,
    recipe: Recipe,
    model: str,
    *,
    factors: Sequence[float] = FACTORS,
    judge: Judge | None = None,
    seeds: Sequence[Direction] = (),
    others: Sequence[Direction] = (),
    report: "Report | None" = None,
) -> Validation:
    """Find out what a direction does.

    Args:
        direction: w.
        recipe: Whose held-out items are asked.
        model: The base: a folder, or a Hub id.
        factors: The k of θ₀ + k·w.
        judge: Of the replies to held-out questions. Default: they are not asked.
        seeds: The directions of single seeds.
        others: Directions to compare with, such as controls.
        report: Is told of the progress.

    Raises:
        WeightWatchError: The model or its chat template is missing, or the direction does not belong to it.
    """
    loaded, tokenizer = load_model(model)
    points = sweep(loaded, tokenizer, direction, recipe, factors, judge, report)
    pairs = {
        f"{a}, {b}": round(cosine(seeds[a], seeds[b]), 4) for a in range(len(seeds)) for b in range(a + 1, len(seeds))
    }
    near = {other.name: round(cosine(direction, other), 4) for other in others}
    return validated(points, recipe).model_copy(update={"seeds": pairs, "others": near})


def checked_anew(
    direction: Direction,
    source: str,
    model: str | None,
    recipe: str | None,
    judge: str,
    judge_model: str | None,
    factors: Sequence[float] | None,
    others: Sequence[str],
) -> Direction:
    """Check a stored direction and keep what is found in its card.

    Args:
        direction: w.
        source: Where it was loaded from.
        model: The base. Default: the one that the card names.
        recipe: Whose items are asked. Default: the one that the card names.
        judge: See ``judges.chosen``. Recipes without a rule are checked by their items alone unless one is named.
        judge_model: Name of the judge at an endpoint.
        factors: The k. Default: ``FACTORS``.
        others: Names or paths of directions to compare with.

    Raises:
        WeightWatchError: The card names no base or recipe that is at hand; see ``check``.
    """
    known = direction.card.validation
    base = model or direction.card.base
    named = recipe or (known.recipe["name"] if known else direction.card.recipe.get("name"))
    if not base or not named:
        lacks = "--model" if not base else "--recipe"
        raise WeightWatchError(
            f"The card of direction {direction.name!r} does not say with what to check it: pass {lacks}."
        )
    wanted = Recipe.load(named)
    referee = None if judge == RULE and isinstance(wanted.judge, ModelJudge) else chosen(wanted, judge, judge_model)
    with progress(Console(stderr=True)) as report:
        found = check(
            direction,
            wanted,
            resolved(base)[1],
            factors=factors or FACTORS,
            judge=referee,
            others=[Direction.load(name) for name in others],
            report=report,
        )
    if known is not None:  # the seeds of a stored direction are joined: what was found of them stays true
        found = found.model_copy(update={"seeds": known.seeds, "others": {**known.others, **found.others}})
    return noted(direction.validated(found), find(source))


def noted(direction: Direction, folder: Path) -> Direction:
    """Write what was found beside a direction's weights: in its card, and as pictures that the model card shows."""
    from weightwatch.pictures import bars, curves

    checked = direction.card.validation
    if checked is not None:
        lines = {
            "behaviour": [point.shows for point in checked.points],
            "opposite": [point.opposite for point in checked.points],
            "neutral tasks": [point.neutral for point in checked.points],
        }
        title = f"θ₀ + k·w, w = {direction.name}"
        curves([point.k for point in checked.points], lines, folder / "sweep.png", ("k", "share of items"), title)
    norms = {str(layer): norm for layer, norm in layer_norms(direction).items()}
    bars(norms, folder / "layers.png", ("layer", "‖w‖"), direction.name)
    direction.save_card(folder)
    return direction


@contextmanager
def progress(console: Console) -> Iterator["Report"]:
    """Show bars, one for each stage that reports.

    The libraries' own are silent meanwhile, and what they still print goes to the standard error: the standard output
    belongs to the result.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with quiet(), aside(), Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=total)

        yield report
