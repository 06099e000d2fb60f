"""A bank of controls: the same contrast with shuffled labels, several times, stored beside the direction."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weightwatch.vectors.arithmetic import small
from weightwatch.vectors.building import pipeline
from weightwatch.vectors.building.output import STAGES
from weightwatch.vectors.catalog import BANK
from weightwatch.vectors.direction import Direction

if TYPE_CHECKING:
    from weightwatch.vectors.generation import Progress
    from weightwatch.vectors.judges.judge import Judge
    from weightwatch.vectors.recipes.recipe import Recipe


def build(
    count: int,
    recipe: "Recipe",
    model: str,
    folder: Path,
    judge: "Judge",
    settings: "pipeline.Settings",
    learning_rate: float,
    progress: "Progress | None" = None,
    base_name: str | None = None,
    compress: int | None = None,
) -> Iterator[Direction]:
    """Build the controls of a direction, save each as it is ready, and yield it.

    Control n is built as the direction was, from the same answers, but with the two sides swapped for a random half of
    the questions. So it has learned the questions and the form of the answers, and no behaviour. An update that reaches
    further along the direction than along all n controls does so by chance in one of n + 1 runs, if the controls are as
    likely to be met as the direction is; docs/detection.md has how far that holds.

    Args:
        count: Number of controls.
        recipe: The recipe of the direction.
        model: The base model: a folder, or a Hub id.
        folder: Folder of the direction. The controls are saved in its subfolder ``controls``.
        judge: Rates the answers, as it did for the direction: its verdicts are reused.
        settings: How the direction was built.
        learning_rate: The one that the direction was trained with.
        progress: Called as the stages advance.
        base_name: Name of the base model in cards. Default: ``model``.
        compress: Number of singular values of each tensor that are kept. Default: all.

    Raises:
        WeightWatchError: See ``pipeline.build``.
    """
    training = replace(settings.training, learning_rates=(learning_rate,))
    alike = replace(settings, training=training, pilot=False)
    for number in range(1, count + 1):
        control = recipe.with_shuffled_labels(number)
        built = pipeline.build(control, model, folder / STAGES, judge, alike, progress, base_name).direction
        direction = built if compress is None else small(built, compress)
        direction.save(folder / BANK / control.name)
        yield direction
