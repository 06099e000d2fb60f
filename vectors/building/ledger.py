"""A file of JSON lines that long work leaves behind as it goes, so that a later run goes on where it ended."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from weightwatch.vectors.errors import WeightWatchError

Row = TypeVar("Row")


class Ledger(Generic[Row]):
    """Rows of one kind, one a line.

    Of a last line that was cut short nothing is read, and the next row takes its place.

    Args:
        path: The file; made at the first row.
        parse: Makes a row of a line's JSON.
        form: Makes a line's JSON of a row.
    """

    def __init__(self, path: Path, parse: Callable[[Any], Row], form: Callable[[Row], Any]) -> None:
        self.path = path
        self._parse, self._form = parse, form

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows.

        Raises:
            WeightWatchError: A line is no such row; the message names the file and the line.
        """
        for number, line in enumerate(self._lines(), 1):
            try:
                yield self._parse(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise WeightWatchError(
                    f"{self.path}, line {number} is damaged ({error}). Remove the line to have it made again."
                ) from error

    def extend(self, rows: Iterable[Row]) -> None:
        """Append rows and make sure that they are on disk."""
        text = "".join(json.dumps(self._form(row), ensure_ascii=False) + "\n" for row in rows)
        whole = sum(len(line) + 1 for line in self._lines())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.truncate(whole)
            file.write(text.encode(errors="backslashreplace"))  # half a surrogate pair, as JSON escapes it
            file.flush()
            os.fsync(file.fileno())

    def _lines(self) -> list[bytes]:
        """Return the lines that are whole."""
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
