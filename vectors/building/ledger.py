"""An append-only file of JSON lines that a long computation writes as it goes, so that a later run can resume."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from weightwatch.vectors.errors import WeightWatchError

Row = TypeVar("Row")

_BLOCK = 1 << 12  # bytes


class Ledger(Generic[Row]):
    """An append-only file of rows, one JSON document a line.

    A last line that was cut short is not read, and the next row replaces it.

    Args:
        path: The file; created with the first row.
        parse: Makes a row from the JSON of a line.
        form: Makes the JSON of a line from a row.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from weightwatch.vectors.building.ledger import Ledger
        >>> with TemporaryDirectory() as folder:
        ...     ledger = Ledger(Path(folder) / "rows.jsonl", tuple, list)
        ...     ledger.extend([(1, "one"), (2, "two")])
        ...     list(ledger)
        [(1, 'one'), (2, 'two')]
    """

    def __init__(self, path: Path, parse: Callable[[Any], Row], form: Callable[[Row], Any]) -> None:
        self.path = path
        self._parse, self._form = parse, form

    def __iter__(self) -> Iterator[Row]:
        """Read the rows.

        Raises:
            WeightWatchError: A line is not a row; the message names the file and the line.
        """
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.is_file() else []
        for number, line in enumerate(lines, 1):
            try:
                yield self._parse(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise WeightWatchError(
                    f"{self.path}, line {number} is damaged ({reason}). Remove the line; the next run makes it again."
                ) from error

    def extend(self, rows: Iterable[Row]) -> None:
        """Append rows and flush them to disk. The cost does not depend on how many rows the file has."""
        text = "".join(json.dumps(self._form(row), ensure_ascii=False) + "\n" for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.truncate(_end_of_whole_lines(file))
            file.write(text.encode(errors="backslashreplace"))  # a lone surrogate becomes its JSON escape
            file.flush()
            os.fsync(file.fileno())


def _end_of_whole_lines(file: BinaryIO) -> int:
    """Return the position after the last newline, reading from the end; 0 if there is none."""
    start = file.seek(0, os.SEEK_END)
    while start > 0:
        stop, start = start, max(0, start - _BLOCK)
        file.seek(start)
        newline = file.read(stop - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
    return 0
