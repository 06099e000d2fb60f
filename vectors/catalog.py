"""Finding a stored direction: by path, or by the name of one that comes with the package."""

from pathlib import Path

from weightwatch.vectors.errors import WeightWatchError

PACKAGED = Path(__file__).parent / "packaged"
CARD = "direction.json"


def packaged() -> list[str]:
    """Return the names of the packaged directions."""
    return sorted(folder.parent.name for folder in PACKAGED.glob(f"*/{CARD}"))


def find(source: str | Path) -> Path:
    """Return the folder of a direction.

    Args:
        source: A folder, or the name of a packaged direction. A folder of that name wins.

    Raises:
        WeightWatchError: There is neither; the message lists the packaged names.
    """
    for folder in (Path(source), PACKAGED / source):
        if (folder / CARD).is_file():
            return folder
    if Path(source).exists():
        raise WeightWatchError(f"{source} is not a stored direction: it has no {CARD}. Save one with Direction.save.")
    raise WeightWatchError(
        f"Unknown direction {str(source)!r}: no such folder (Hub ids are not fetched); packaged ones are "
        f"{', '.join(packaged()) or 'none'}."
    )
