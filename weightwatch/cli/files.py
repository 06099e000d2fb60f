"""Text files that a command writes for its user."""

from collections.abc import Mapping
from pathlib import Path

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text


def write(files: Mapping[Path, str]) -> None:
    """Write text files, each completely or not at all.

    Raises:
        WeightWatchError: One can't be written.
    """
    for file, text in files.items():
        try:
            write_text(file.resolve(), text)  # what a link points to, and not the link, is replaced
        except OSError as error:
            raise WeightWatchError(f"{file} can't be written ({error.strerror}). Name another place.") from error
