"""The page of promises names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISES = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"))


def test_every_row_of_the_page_names_a_test() -> None:
    rows = [line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if line.startswith("| ")]
    assert len([row for row in rows if not row.startswith("| promise")]) == len(PROMISES) > 40


@pytest.mark.parametrize(("file", "test"), PROMISES)
def test_a_promise_is_held_by_a_test(file: str, test: str) -> None:
    assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
        f"{file} has no {test}"
    )
