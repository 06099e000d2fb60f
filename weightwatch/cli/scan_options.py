"""Options of ``weightwatch scan``."""

from pathlib import Path
from typing import Annotated

import typer

from weightwatch.cli.options import finite

What = Annotated[str, typer.Argument(help="A checkpoint, a PEFT adapter, a folder of several, or a Hub id.")]
Directions = Annotated[
    list[str] | None, typer.Option("--direction", "-d", help="Direction to measure against; may be repeated.")
]
Controls = Annotated[
    list[str] | None, typer.Option("--control", help="Control direction, for the z-score; may be repeated.")
]
Reference = Annotated[
    str | None,
    typer.Option(help="Path or Hub id of the model before training. Default: the one that the run names."),
]
Settings = Annotated[
    Path | None,
    typer.Option(help="YAML file with rules, directions, controls and reference. Default rules: uncalibrated ones."),
]
Output = Annotated[
    Path | None,
    typer.Option(help="Folder for readings and alerts. Default: weightwatch-scan in the run's folder."),
]
Report = Annotated[
    Path | None, typer.Option(help="HTML file to write, too: the page of `weightwatch report` about this scan.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Wait for further checkpoints of the run.")]
UntilIdle = Annotated[
    float | None,
    typer.Option(callback=finite, min=0, help="With --follow: stop after this many seconds without a new checkpoint."),
]
StopAfter = Annotated[int | None, typer.Option(min=1, help="With --follow: stop after this many checkpoints.")]
Poll = Annotated[
    float, typer.Option(callback=finite, min=0.05, help="With --follow: seconds between polls of the folder.")
]
