from pathlib import Path

import pytest

from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.atomic import whole_file, whole_folder, write_text


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep" / "out") as draft:
        (draft / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").rglob("*")] == ["out", "a"]


def test_an_error_in_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as draft:
        (draft / "a").write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_refused_and_an_empty_one_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as draft:
        (draft / "a").write_text("1")
    with (
        pytest.raises(WeightWatchError, match="empty already exists and is not empty"),
        whole_folder(tmp_path / "empty"),
    ):
        pass
    assert (tmp_path / "empty" / "a").read_text() == "1"


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(WeightWatchError, match=r"out can't be written .* pass another folder"),
        whole_folder(tmp_path / "file" / "out"),
    ):
        pass


def test_a_file_is_replaced_when_its_block_ends_and_stays_after_an_error(tmp_path: Path) -> None:
    file = tmp_path / "note.txt"
    write_text(file, "größer")
    assert file.read_bytes() == "größer".encode()
    with pytest.raises(ZeroDivisionError), whole_file(file) as draft, draft.open("w") as half:
        half.writelines(str(1 / number) for number in (1, 0))
    assert file.read_text(encoding="utf-8") == "größer"
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
