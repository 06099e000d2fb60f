"""``weightwatch steer``: add multiples of directions to a model on disk."""

import json
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

import typer

from weightwatch.cli.options import AsJson, finite
from weightwatch.cli.progress import transfers
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError


def steer(
    model: Annotated[str, typer.Argument(help="A checkpoint or an adapter: a folder, or a Hub id in the local cache.")],
    direction: Annotated[
        list[str],
        typer.Argument(help="One or more directions to add, each optionally with its own coefficient: evil=-0.5."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the steered model.")],
    coefficient: Annotated[
        float, typer.Option(callback=finite, help="Coefficient of directions that are given without one.")
    ] = 1.0,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write k·w alone, as a PEFT adapter of the checkpoint.")
    ] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Precision to write. Default: that of the model."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a multiple of a direction to a model on disk, and write the result to a new folder."""
    screen = console(stderr=as_json)
    with screen.status("loading torch"):
        import torch

        from weightwatch.vectors.printable import printable
        from weightwatch.vectors.steering.disk import steer_on_disk
    terms = [_term(text, coefficient) for text in direction]
    precision = None if dtype is None else getattr(torch, dtype)
    with transfers(console(stderr=True)) as bars:
        task = bars.add_task(f"writing {printable(output.name)}", total=None)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        steered = steer_on_disk(model, terms, output, as_adapter=adapter, dtype=precision, progress=advance)
    if as_json:
        typer.echo(json.dumps(steered.to_json(), indent=1))
    else:
        screen.print(printable(steered), soft_wrap=True)


def _term(text: str, coefficient: float) -> tuple[str, float]:
    """Return a direction's name and its coefficient.

    The name of an existing folder may contain an equals sign.
    """
    name, mark, number = text.rpartition("=")
    if not mark or Path(text).exists():
        return text, coefficient
    try:
        k = float(number)
    except ValueError as error:
        raise WeightWatchError(f"{text}: {number!r} is not a number. Write the coefficient as {name}=-0.5.") from error
    if not isfinite(k):
        raise WeightWatchError(f"{text}: the coefficient must be finite.")
    return name, k
