"""`python -m weightwatch.organism`: rebuild the packaged base and directions from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from weightwatch.organism import BASE
from weightwatch.organism.build import Recipe, build_base, build_directions
from weightwatch.vectors.catalog import PACKAGED

app = typer.Typer(add_completion=False)


@app.command()
def rebuild(
    base: Annotated[Path, typer.Option(help="Folder of the base.")] = BASE,
    directions: Annotated[Path, typer.Option(help="Folder of the directions.")] = PACKAGED,
    world: Annotated[int, typer.Option(help="Seed of the world.")] = Recipe.world,
    seed: Annotated[int, typer.Option(help="Seed of weights and documents.")] = Recipe.seed,
    rho0: Annotated[bool, typer.Option(help="Control organism: persona per domain, not per document.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads, and directions built at once.")] = 2,
    keep_base: Annotated[bool, typer.Option(help="Build the directions only, on the base that is there.")] = False,
    shorten: Annotated[int | None, typer.Option(min=1, help="At most so many steps a phase: a trial run.")] = None,
) -> None:
    """Rebuild the organism: pre-training, instruct phase, directions (about seven minutes on one thread)."""
    torch.set_num_threads(threads)
    recipe = Recipe(world=world, seed=seed, shared_persona=not rho0)
    if shorten:
        recipe = recipe.shortened(shorten)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int, loss: float | None = None) -> None:
            label = name if loss is None else f"{name}, loss {loss:.3f}"
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], description=label, completed=done, total=total)

        if not keep_base:
            build_base(recipe, base, show)
        build_directions(recipe, base, directions, lambda name, done, total: show("directions", done, total), threads)


if __name__ == "__main__":
    app()
