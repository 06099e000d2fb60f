from pathlib import Path

import pytest

from weightwatch import WeightWatchError
from weightwatch.cli.files import write


def test_texts_are_written_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    write({tmp_path / "a": "θ₀", tmp_path / "b": "w"})
    assert (tmp_path / "a").read_text(encoding="utf-8") == "θ₀"
    with pytest.raises(WeightWatchError, match=r"c can't be written \(No such file or directory\)"):
        write({tmp_path / "none" / "c": ""})
