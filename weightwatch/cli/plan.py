"""The plan of a build, printed before it starts, and how long its fine-tunes take once a step is measured."""

from typing import TYPE_CHECKING

from rich.table import Table

from weightwatch.cli.pace import Pace, duration

if TYPE_CHECKING:
    from rich.console import Console

    from weightwatch.vectors.building.pipeline import Settings
    from weightwatch.vectors.building.plan import Plan
    from weightwatch.vectors.evaluation.extent import Extent
    from weightwatch.vectors.generation import Progress


def table(plan: "Plan | None", extent: "Extent | None", settings: "Settings", *, quick: bool) -> Table:
    """Return the stages of a build with their counts.

    Args:
        plan: The work up to the direction; None if its fine-tunes exist already.
        extent: What the check asks; None for no check.
        settings: The settings of the build.
        quick: Whether the check is quick.
    """
    grid = Table.grid(padding=(0, 2))
    if plan is not None:
        if plan.answers:
            grid.add_row("answers", f"{plan.answers} to draw, of up to {settings.sampling.max_new_tokens} tokens")
        grid.add_row("verdicts", f"up to {plan.verdicts}")
        grid.add_row("fine-tunes", f"{plan.fine_tunes} of up to {plan.steps} steps of {settings.training.batch_size}")
    if extent is None:
        grid.add_row("check", "none")
    else:
        replies = f", {extent.replies} replies" if extent.replies else ""
        ks = ", ".join(f"{k:g}" for k in extent.coefficients)
        grid.add_row("check", f"{len(extent.items)} items, {len(extent.tasks)} neutral tasks{replies}, at k = {ks}")
        if quick:
            grid.add_row("", "quick, without a GPU; --full-check asks everything")
    return grid


def announced(progress: "Progress", pace: Pace, plan: "Plan", screen: "Console") -> "Progress":
    """Return a progress function that also prints, after a first step, how long all fine-tunes take at that pace."""
    told = False

    def advance(stage: str, done: int, total: int) -> None:
        nonlocal told
        progress(stage, done, total)
        step = pace.step(stage) if stage.startswith("seed-") else None
        if step is not None and not told:
            told = True
            whole = f"{plan.fine_tunes} x {total} steps take about {duration(step * total * plan.fine_tunes)}"
            screen.print(f"fine-tunes: {duration(step)} a step here; {whole}", soft_wrap=True)

    return advance
