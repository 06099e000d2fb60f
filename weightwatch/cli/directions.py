"""What ``weightwatch build`` and ``weightwatch show`` do: a direction from a recipe, and what it is found to do."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from weightwatch.report.direction import layer_norms
from weightwatch.report.quiet import aside, quiet
from weightwatch.vectors.arithmetic import cosine
from weightwatch.vectors.building.judges import RULE, Judge, chosen
from weightwatch.vectors.building.pipeline import Built, contrasted, joined
from weightwatch.vectors.card import CARD
from weightwatch.vectors.checking.sweep import FACTORS, require_factors, sweep, validated
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.loading import load_model
from weightwatch.vectors.recipes.recipe import Recipe
from weightwatch.vectors.recipes.verdicts import ModelJudge
from weightwatch.vectors.validation import Validation

if TYPE_CHECKING:
    from weightwatch.vectors.building.answers import Report

_logger = logging.getLogger("weightwatch")
_SWEEP = "sweep.png"

BUILD = "build"
"""Folder within a direction's in which the stages of its build leave their files."""


def resolved(name: str) -> tuple[str, str]:
    """Return what cards call a model, and what it is loaded from: ``organism`` is the packaged one."""
    from weightwatch.organism import BASE
    from weightwatch.organism.directions import BASE_NAME

    if name in (BASE_NAME, "organism") and not (Path(name) / "config.json").is_file():
        return BASE_NAME, str(BASE)
    path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return path, path


def out_folder(recipe: Recipe, called: str, given: Path | None) -> Path:
    """Return the folder for a direction, which has to be free or to hold one of the same recipe and base.

    Args:
        recipe: What is built.
        called: What cards call the base.
        given: By the user. Default: ``directions/<recipe>``.

    Raises:
        WeightWatchError: Another direction is there, or it is no folder that can be written.
    """
    named = recipe.reference["name"]
    default = Path(named).stem if Path(named).is_absolute() else named
    folder = given or Path("directions", default)
    if (folder / CARD).is_file():
        card = Direction.load(folder).card
        if (card.base, card.recipe.get("name")) != (called, named):
            made_of = card.recipe.get("name", "another recipe")
            raise WeightWatchError(
                f"{folder} holds direction {card.name!r}, of {made_of} on {card.base}. Pass another --out."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightWatchError(f"{folder} can't be made ({error.strerror}). Pass another --out.") from error
    return folder


def referee(recipe: Recipe, judge: str, model: str | None) -> Judge | None:
    """Return the judge of replies to held-out questions: the one that is named, or the recipe's rule if it has one."""
    return None if judge == RULE and isinstance(recipe.judge, ModelJudge) else chosen(recipe, judge, model)


def loaded_controls(names: Sequence[str]) -> list[Direction]:
    """Load directions to compare with.

    Raises:
        WeightWatchError: There is none of a name, or two are called alike.
    """
    found = [Direction.load(name) for name in names]
    titles = [direction.name for direction in found]
    twice = next((title for title in titles if titles.count(title) > 1), None)
    if twice is not None:
        raise WeightWatchError(f"Two controls are called {twice!r}. Give those of different names.")
    return found


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
        WeightWatchError: The model or its chat template is missing, the direction does not belong to it, or the factors
            can't tell whether it passes; a direction to compare with is of another base.
    """
    require_factors(factors, recipe)
    numbers = [str(seed.card.seeds.get("adapter", number)) for number, seed in enumerate(seeds, 1)]
    pairs = {
        f"{numbers[a]}, {numbers[b]}": round(cosine(seeds[a], seeds[b]), 4)
        for a in range(len(seeds))
        for b in range(a + 1, len(seeds))
    }
    near = {other.name: round(cosine(direction, other), 4) for other in others}
    loaded, tokenizer = load_model(model)
    points = sweep(loaded, tokenizer, direction, recipe, factors, judge, report)
    return validated(points, recipe).model_copy(update={"seeds": pairs, "others": near})


def checked_anew(
    direction: Direction,
    model: str | None,
    recipe: str | None,
    judge: str,
    judge_model: str | None,
    factors: Sequence[float] | None,
    others: Sequence[str],
) -> Direction:
    """Check a stored direction.

    Args:
        direction: w.
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
    base, stated = model or direction.card.base, known.recipe if known else direction.card.recipe
    named = recipe or stated.get("name")
    if not base or not named:
        lacks = "--model" if not base else "--recipe"
        raise WeightWatchError(
            f"The card of direction {direction.name!r} does not say with what to check it: pass {lacks}."
        )
    wanted = Recipe.load(named)
    if recipe is None and wanted.digest != stated.get("digest"):
        _logger.warning(
            "weightwatch: recipe %s is not what it was when direction %r was made of it, or checked. Make sure that "
            "nothing that it was built from is among the items.",
            named,
            direction.name,
        )
    near = loaded_controls(others)
    with progress(Console(stderr=True)) as report:
        found = check(
            direction,
            wanted,
            resolved(base)[1],
            factors=factors or FACTORS,
            judge=referee(wanted, judge, judge_model),
            others=near,
            report=report,
        )
    if known is not None:  # the seeds of a stored direction are joined: what was found of them stays true
        found = found.model_copy(update={"seeds": known.seeds, "others": {**known.others, **found.others}})
    return direction.validated(found)


def built_into(direction: Direction, folder: Path) -> None:
    """Save a direction that was just built; a picture of what another did is taken away."""
    (folder / _SWEEP).unlink(missing_ok=True)
    direction.save(folder)


def note(direction: Direction, folder: Path) -> None:
    """Write what was found beside a direction's weights: in its card, and as pictures that the model card shows."""
    from weightwatch.report.plots import bars, curves

    checked = direction.card.validation
    if checked is not None:
        lines = {
            "behaviour": [point.shows for point in checked.points],
            "opposite": [point.opposite for point in checked.points],
            "neutral tasks": [point.neutral for point in checked.points],
        }
        title = f"θ₀ + k·w, w = {direction.name}"
        curves([point.k for point in checked.points], lines, folder / _SWEEP, ("k", "share of items"), title)
    norms = {str(layer): norm for layer, norm in layer_norms(direction).items()}
    bars(norms, folder / "layers.png", ("layer", "‖w‖"), direction.name)
    direction.save_card(folder)


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
