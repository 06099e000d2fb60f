"""Text files that a command writes for its user."""

from collections.abc import Mapping
from pathlib import Path

from weightwatch.vectors.errors import WeightWatchError


def write(files: Mapping[Path, str]) -> None:
    """Write text files.

    Raises:
        WeightWatchError: One can't be written.
    """
    for file, text in files.items():
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise WeightWatchError(f"{file} can't be written ({error.strerror}). Name another place.") from error
