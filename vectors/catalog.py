"""Finding a stored direction: by path, by the name of one that comes with the package, or by an id of the Hub."""

from pathlib import Path

from weightwatch.vectors.card import CARD
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.hub import fetch, is_id

PACKAGED = Path(__file__).parent / "packaged"


def packaged() -> list[str]:
    """Return the names of the packaged directions."""
    return sorted(folder.parent.name for folder in PACKAGED.glob(f"*/{CARD}"))


def find(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a direction.

    Args:
        source: A folder, the name of a packaged direction, or a Hub id, ``org/name``. A folder of that name wins.
        revision: Branch, tag or commit of one on the Hub.

    Raises:
        WeightWatchError: There is none; the message lists the packaged names.
    """
    for folder in (Path(source), PACKAGED / source):
        if revision is None and (folder / CARD).is_file():
            return folder
    if Path(source).exists():
        lack = f"it has no {CARD}. Save one with Direction.save" if revision is None else "a folder has no revision"
        raise WeightWatchError(f"{source} is not a stored direction: {lack}.")
    if is_id(str(source)):
        return fetch(str(source), revision=revision)
    raise WeightWatchError(
        f"Unknown direction {str(source)!r}: no such folder, and no id of the Hub (org/name); packaged ones are "
        f"{', '.join(packaged()) or 'none'}."
    )
