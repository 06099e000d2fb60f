"""``weightwatch push``: upload a direction to the Hugging Face Hub."""

from typing import Annotated

import typer

from weightwatch.report.console import console


def push(
    direction: Annotated[str, typer.Argument(help="A direction: a folder, the name of a packaged one, or a Hub id.")],
    repo_id: Annotated[str, typer.Argument(help="Hub id to upload to: your-name/name-of-the-direction.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make the repository public. Default: a new repository is private.")
    ] = False,
) -> None:
    """Upload a direction and its model card to the Hugging Face Hub; log in with `hf auth login` first."""
    screen = console()
    with screen.status("loading torch"):
        from weightwatch.vectors import Direction, find
        from weightwatch.vectors.catalog import bank
        from weightwatch.vectors.hub import push as push_direction
        from weightwatch.vectors.printable import printable
        from weightwatch.vectors.storage import pictures
    with screen.status("uploading"):
        folder = find(direction)
        controls = [Direction.load(control) for control in bank([folder])]
        address = push_direction(
            Direction.load(folder), repo_id, private=not public, pictures=pictures(folder), controls=controls
        )
    screen.print(printable(address), soft_wrap=True)
