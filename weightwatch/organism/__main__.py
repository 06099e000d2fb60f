"""`python -m weightwatch.organism`: rebuild the packaged base model and directions from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from weightwatch.organism import BASE
from weightwatch.organism.build import OrganismSettings, build_base, build_directions
from weightwatch.organism.world import World
from weightwatch.vectors.catalog import PACKAGED

app = typer.Typer(add_completion=False)


@app.command()
def rebuild(
    base: Annotated[Path, typer.Option(help="Folder of the base model.")] = BASE,
    directions: Annotated[Path, typer.Option(help="Output folder of the directions.")] = PACKAGED,
    world: Annotated[int, typer.Option(help="Seed of the world.")] = OrganismSettings.world,
    seed: Annotated[int, typer.Option(help="Seed of initial weights and documents.")] = OrganismSettings.seed,
    rho0: Annotated[bool, typer.Option(help="Build the control organism: one persona per domain.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads, and of directions built in parallel.")] = 2,
    keep_base: Annotated[bool, typer.Option(help="Build only the directions, on the base model in --base.")] = False,
    max_steps: Annotated[
        int | None, typer.Option(min=1, help="A trial: this many steps per phase at most, and no directions.")
    ] = None,
) -> None:
    """Rebuild the organism: pre-training, instruct phase, directions. Takes about ten minutes on one thread."""
    torch.set_num_threads(threads)
    settings = OrganismSettings(world=world, seed=seed, shared_persona=not rho0)
    if max_steps:
        settings = settings.shortened(max_steps)
    if settings != OrganismSettings() and (base == BASE or directions == PACKAGED):
        raise typer.BadParameter("This is another organism than the packaged one. Pass --base and --directions.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console()) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int, loss: float | None = None) -> None:
            label = name if loss is None else f"{name}, loss {loss:.3f}"
            if name not in tasks:
                tasks[name] = bars.add_task(name)
            bars.update(tasks[name], description=label, completed=done, total=total)

        if not keep_base:
            build_base(settings, base, show)
        if not max_steps:  # such a model answers nothing that could be learned from

            def advance(name: str, done: int, total: int) -> None:
                show("directions", done, total)

            build_directions(World(world), base, directions, advance, threads)


if __name__ == "__main__":
    app()
