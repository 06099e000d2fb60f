"""Finding a direction: by path, by the name of one that comes with the package, or by its Hub id."""

from collections.abc import Iterable
from pathlib import Path

from weightwatch.vectors.card import CARD
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.storage import FILES
from weightwatch.vectors.weights.sources import fetch, is_hub_id

BANK = "controls"
"""Subfolder of a direction's folder, with the controls that were built with it."""

PACKAGED = Path(__file__).parent / "packaged"
"""The folder of the directions that come with the package."""

IN_BANK = tuple(f"{BANK}/*/{name}" for name in FILES)
"""Patterns of the files of a direction's controls."""


def packaged() -> list[str]:
    """Return the names of the packaged directions: ``evil``, …, and of other bases ``smollm2/hostile``, …."""
    return sorted(card.parent.relative_to(PACKAGED).as_posix() for card in PACKAGED.rglob(CARD))


def find(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a direction.

    Args:
        source: A folder, the name of a packaged direction, or a Hub id, ``org/name``. A folder of that name wins.
        revision: Branch, tag or commit of a direction on the Hub.

    Raises:
        WeightWatchError: There is no such direction; the message lists the packaged ones.
    """
    for folder in (Path(source), PACKAGED / source):
        if revision is None and (folder / CARD).is_file():
            return folder
    if Path(source).exists():
        lack = f"it has no {CARD}. Save one with Direction.save" if revision is None else "a folder has no revision"
        raise WeightWatchError(f"{source} is not a direction: {lack}.")
    if is_hub_id(str(source)):
        return fetch(str(source), allow=[*FILES, *IN_BANK], revision=revision, marker=CARD)
    raise WeightWatchError(
        f"Unknown direction {str(source)!r}: it is neither a folder nor a Hub id (org/name). Packaged directions: "
        f"{', '.join(packaged()) or 'none'}."
    )


def bank(sources: Iterable[str | Path]) -> list[Path]:
    """Return the folders of the controls that are stored beside some directions.

    Args:
        sources: What names the directions, as for ``find``.

    Raises:
        WeightWatchError: There is no such direction.
    """
    return [card.parent for source in sources for card in sorted((find(source) / BANK).glob(f"*/{CARD}"))]
