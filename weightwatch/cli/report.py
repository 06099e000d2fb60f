"""``weightwatch report``: a page about one run or several."""

from pathlib import Path
from typing import Annotated

import typer

from weightwatch.cli.files import write
from weightwatch.report.console import console
from weightwatch.vectors.printable import printable


def report(
    run: Annotated[list[Path], typer.Argument(help="Output folders of watched runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("weightwatch.html"),
    markdown: Annotated[Path | None, typer.Option(help="Markdown file to write, too.")] = None,
    png: Annotated[Path | None, typer.Option(help="Picture to write, too: verdict and main charts.")] = None,
) -> None:
    """Write a self-contained page about runs, from their records alone; the model is not needed."""
    screen = console()
    with screen.status("reading the records"):
        from weightwatch.record.recorded_run import RecordedRun
        from weightwatch.report import html, overview

        runs = [RecordedRun.of(each) for each in run]
        files = {output: html.page(runs), **({markdown: html.markdown(runs)} if markdown is not None else {})}
    write(files)
    pictures = [overview.draw(runs, png)] if png is not None else []
    for file in [*files, *pictures]:
        screen.print(f"Written to {printable(file)}.", markup=False, soft_wrap=True)
    for each in runs:
        screen.print(printable(f"{each.title}: {html.verdict(each)}"), markup=False, soft_wrap=True, highlight=False)
