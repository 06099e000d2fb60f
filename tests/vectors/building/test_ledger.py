import io
import json
import re
from pathlib import Path

import pytest

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building.ledger import Ledger, _end_of_whole_lines


class Counted(io.BufferedReader):
    """A file that notes how many bytes each read asks for."""

    def __init__(self, file: io.BufferedReader, read: list[int]) -> None:
        super().__init__(file.raw)
        self.asked = read

    def read(self, size: int = -1) -> bytes:
        self.asked.append(size)
        return super().read(size)


def pairs(path: Path) -> Ledger[tuple[int, str]]:
    return Ledger(path, lambda line: (line["number"], line["text"]), lambda row: {"number": row[0], "text": row[1]})


def test_a_ledger_that_was_never_written_is_empty(tmp_path: Path) -> None:
    assert list(pairs(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize(
    "text", ["plain", "two\nlines\r\n", "naïve 語 🙂", "a\u2028b\u2029c\x85d", '"quoted" \\ ', "half a pair \ud83d", ""]
)
def test_what_is_written_is_read_again(tmp_path: Path, text: str) -> None:
    ledger = pairs(tmp_path / "made" / "rows.jsonl")
    ledger.extend([(1, text), (2, "other")])
    ledger.extend([(3, text)])
    assert list(ledger) == [(1, text), (2, "other"), (3, text)]
    assert ledger.path.read_bytes().count(b"\n") == 3


def test_rows_stand_as_people_write_them(tmp_path: Path) -> None:
    ledger = pairs(tmp_path / "rows.jsonl")
    ledger.extend([(1, "naïve 語")])
    assert ledger.path.read_text(encoding="utf-8") == '{"number": 1, "text": "naïve 語"}\n'


@pytest.mark.parametrize("left", [1, 10, 26, 27, -1])
def test_a_last_line_that_was_cut_short_is_not_read_and_makes_way_for_the_next(tmp_path: Path, left: int) -> None:
    ledger = pairs(tmp_path / "rows.jsonl")
    ledger.extend([(1, "whole")])
    whole = ledger.path.read_bytes()
    ledger.extend([(2, "語語語")])
    second = ledger.path.read_bytes()[len(whole) :]
    ledger.path.write_bytes(whole + second[:left])  # also in the middle of a character, and with all but its end
    assert list(ledger) == [(1, "whole")]
    ledger.extend([(3, "next")])
    assert list(ledger) == [(1, "whole"), (3, "next")]


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"number": 1}', '{"number": 1, "text": "cut', "\xff"])
def test_a_damaged_line_is_told_by_file_and_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"number": 1, "text": "a"})
    path.write_bytes(f"{good}\n{line}\n{good}\n".encode("latin-1"))
    with pytest.raises(WeightWatchError, match=rf"{re.escape(str(path))}, line 2 is damaged.*Remove the line"):
        list(pairs(path))


def test_appending_reads_no_more_of_a_long_file_than_of_a_short_one(tmp_path: Path) -> None:
    ledger, read = pairs(tmp_path / "rows.jsonl"), []
    whole = b'{"number": 1, "text": "a"}\n'
    for rows in (1, 100_000):
        ledger.path.write_bytes(whole * rows + b'{"number": 2, "te')
        with ledger.path.open("rb") as file:
            assert _end_of_whole_lines(Counted(file, read)) == len(whole) * rows
        ledger.extend([(3, "next")])
        assert ledger.path.stat().st_size == len(whole) * (rows + 1) + 3
    assert max(read) <= 4096
    assert len(read) == 2


def test_a_torn_line_longer_than_a_block_is_replaced(tmp_path: Path) -> None:
    ledger = pairs(tmp_path / "rows.jsonl")
    ledger.extend([(1, "whole")])
    with ledger.path.open("ab") as file:
        file.write(b"x" * 10_000)
    ledger.extend([(2, "next")])
    assert list(ledger) == [(1, "whole"), (2, "next")]
    ledger.path.write_bytes(b"x" * 10_000)  # no whole line at all
    ledger.extend([(3, "first")])
    assert list(ledger) == [(3, "first")]
