from pathlib import Path

import pytest

from tests.support.models import dense, low_rank, tiny_llama
from weightwatch.vectors import Direction, WeightWatchError, catalog, find, packaged
from weightwatch.vectors.catalog import BANK, bank


def test_an_unknown_direction_is_an_error_that_lists_the_packaged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sycophancy", "evil"):
        dense(tiny_llama(), 1, name=name).save(tmp_path / name)
    monkeypatch.setattr(catalog, "PACKAGED", tmp_path)
    assert packaged() == ["evil", "sycophancy"]
    with pytest.raises(WeightWatchError, match=r"Unknown direction 'evli': .* Packaged directions: evil, sycophancy"):
        Direction.load("evli")


def test_a_packaged_direction_loads_by_name_and_a_folder_of_that_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, here = tmp_path / "packaged", tmp_path / "here"
    monkeypatch.setattr(catalog, "PACKAGED", inside)
    dense(tiny_llama(), 1).save(inside / "evil")
    here.mkdir()
    monkeypatch.chdir(here)
    assert find("evil") == inside / "evil"
    assert Direction.load("evil").name == "evil"
    mine = dense(tiny_llama(), 2)
    mine.save(here / "evil")
    assert Direction.load("evil").norm == pytest.approx(mine.norm)


def test_a_packaged_direction_of_another_base_has_the_base_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "PACKAGED", tmp_path)
    dense(tiny_llama(), 1, name="hostile").save(tmp_path / "smollm2" / "hostile")
    assert packaged() == ["smollm2/hostile"]
    assert find("smollm2/hostile") == tmp_path / "smollm2" / "hostile"
    assert Direction.load("smollm2/hostile").name == "hostile"


def test_a_folder_that_holds_no_direction_is_an_error_that_says_what_it_lacks(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(WeightWatchError, match=r"is not a direction: it has no direction\.json"):
        find(tmp_path)


def test_controls_that_are_stored_beside_directions_are_found_with_them(tmp_path: Path) -> None:
    model = tiny_llama()
    evil = low_rank(model, 1, name="evil").save(tmp_path / "evil")
    rude = low_rank(model, 2, name="rude").save(tmp_path / "rude")
    second, first = (low_rank(model, 3, name=f"c{n}").save(evil / BANK / f"c{n}") for n in (2, 1))
    (evil / BANK / "notes").mkdir()
    assert bank([evil, rude]) == [first, second]
    assert bank([rude]) == []
    with pytest.raises(WeightWatchError, match="Unknown direction"):
        bank([tmp_path / "none"])
