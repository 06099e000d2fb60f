"""The output folder of a build."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from weightwatch.vectors.card import CARD
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.portable import portable, portable_name

if TYPE_CHECKING:
    from weightwatch.vectors.recipes.recipe import Recipe

STAGES = "build"
"""Subfolder of the direction's folder, with the files of the build's stages."""
_LOCK = ".lock"


@contextmanager
def only_build(folder: Path) -> Iterator[None]:
    """Make sure that no other process builds in a folder for the duration of a block.

    The lock ends with the process that has it, however that ends.

    Args:
        folder: The build folder; created if it does not exist.

    Raises:
        WeightWatchError: Another process is building there, or the folder can't be written.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        raise WeightWatchError(
            f"Another process is building in {folder}. Wait for it, or pass another --output."
        ) from None
    except OSError as error:
        raise WeightWatchError(f"{folder} can't be written ({error.strerror}). Pass another --output.") from error
    try:
        yield
    finally:
        lock.release()


def output_folder(recipe: "Recipe", base_name: str, given: Path | None, *, behind: bool = False) -> Path:
    """Return the output folder of a build; it is created if it does not exist.

    Args:
        recipe: The recipe to build.
        base_name: The base model's name on the direction's card.
        given: The folder. Default: ``directions/<recipe>``, or ``directions/<recipe>-behind``.
        behind: Whether the direction is built behind a guard.

    Raises:
        WeightWatchError: The folder has a direction of another recipe or base, or one with a guard where this has none,
            or the reverse; or it can't be created.
    """
    named = recipe.reference["name"]
    default = Path(named).stem if Path(named).is_absolute() else named
    folder = given or Path("directions", f"{default}-behind" if behind else default)
    if (folder / CARD).is_file():
        card = Direction.load(folder).card.portable()
        there = (card.base, card.recipe.get("name"), "guard" in card.hyperparameters)
        if there != (portable_name(base_name), portable(named), behind):
            made_of, guarded = card.recipe.get("name", "another recipe"), " behind a guard" if there[2] else ""
            raise WeightWatchError(
                f"{folder} has direction {card.name!r}, built from {made_of} on {card.base}{guarded}. Pass another "
                "--output."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightWatchError(f"{folder} can't be created ({error.strerror}). Pass another --output.") from error
    return folder
