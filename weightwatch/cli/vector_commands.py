"""The commands of the command line that make, check, apply and share directions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

Precision = Literal["float32", "bfloat16", "float16"]


def steer(
    model: Annotated[str, typer.Argument(help="A checkpoint or an adapter: a folder, or a Hub id in the cache.")],
    direction: Annotated[
        list[str], typer.Argument(help="Direction to add, or several, each with a coefficient of its own as evil=-0.5.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder to write.")],
    by: Annotated[float, typer.Option(help="Coefficient of directions that are given without one.")] = 1.0,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write k·w as a PEFT adapter of the checkpoint instead of a new one.")
    ] = False,
    dtype: Annotated[Precision | None, typer.Option(help="Precision to write. Default: as stored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
) -> None:
    """Add a multiple of a direction to a model on disk, and write the result beside it."""
    console = Console(stderr=as_json)
    with console.status("loading torch"):
        from weightwatch.cli.steer import Steering
    done = Steering(model, direction, by).write(out, Console(stderr=True), as_adapter=adapter, dtype=dtype)
    if as_json:
        typer.echo(json.dumps(done.to_json(), indent=1))
    else:
        console.print(f"{done}", markup=False, soft_wrap=True)


def compare(
    what: Annotated[list[str], typer.Argument(help="Directions, and fine-tunes or adapters as their task vectors.")],
    base: Annotated[
        str | None, typer.Option(help="What the fine-tunes started from: folder, or Hub id in the cache.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the matrix to a file (.png, .svg, .pdf).")] = None,
) -> None:
    """Show the cosines between directions and what fine-tunes did to their base."""
    console = Console(stderr=as_json)
    with console.status("loading torch"):
        from weightwatch.cli.compare import compared
    found = compared(what, base, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        console.print(found.table())
    if picture is not None:
        from weightwatch.report.plots import heat_map

        heat_map(found.names, found.cosines, picture)


def push(
    direction: Annotated[str, typer.Argument(help="A stored direction.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: your-name/name-of-the-direction.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it. Default: private.")] = False,
) -> None:
    """Push a direction to the Hugging Face Hub, with its model card; `hf auth login` gives the permission."""
    console = Console()
    with console.status("loading torch"):
        from weightwatch.vectors import Direction, find
        from weightwatch.vectors.hub import push as push_direction
    with console.status("pushing"):
        pictures = sorted(find(direction).glob("*.png"))
        address = push_direction(Direction.load(direction), repo_id, private=not public, pictures=pictures)
    console.print(address, soft_wrap=True)


COMMANDS: tuple[Callable[..., None], ...] = (steer, compare, push)
