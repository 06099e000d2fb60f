"""Options that several commands have."""

from collections.abc import Iterable
from math import isfinite
from typing import Annotated, TypeVar

import typer

Numbers = TypeVar("Numbers", float, list[float], float | None, list[float] | None)


def finite(value: Numbers) -> Numbers:
    """Refuse inf, which is above every lower limit, and nan, which passes where there is no limit."""
    for number in value if isinstance(value, Iterable) else [value]:
        if number is not None and not isfinite(number):
            raise typer.BadParameter(f"{number} is not a finite number.")
    return value


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        help="Judge of the answers: rule (the recipe's own), the address of an OpenAI-compatible endpoint, or a chat "
        "model or text classifier (a folder, or a Hub id).",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option(help="Name of the judge at the endpoint. Default: the first that it lists.")
]
Coefficients = Annotated[
    list[float] | None,
    typer.Option(
        "--coefficient",
        help="Coefficient k of θ₀ + k·w; may be repeated. Default: seven from -2 to 2.",
        callback=finite,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the Python code that comes with the base model. Read it first."),
]
FullCheck = Annotated[
    bool,
    typer.Option("--full-check", help="Ask everything. Default with a GPU; otherwise the check is quick."),
]
Controls = Annotated[list[str] | None, typer.Option("--control", help="Direction to compare with; may be repeated.")]
