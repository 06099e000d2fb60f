"""Options that several commands have."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else.")]
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        help="Judge of the answers: rule (the recipe's own), the address of an OpenAI-compatible endpoint, or a text "
        "classifier (a folder, or a Hub id).",
    ),
]
JudgeModel = Annotated[
    str | None, typer.Option(help="Name of the judge at the endpoint. Default: the first that it lists.")
]
Coefficients = Annotated[
    list[float] | None,
    typer.Option("--coefficient", help="Coefficient k of θ₀ + k·w; may be repeated. Default: seven from -2 to 2."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the Python code that comes with the base model. Read it first."),
]
Controls = Annotated[list[str] | None, typer.Option("--control", help="Direction to compare with; may be repeated.")]
