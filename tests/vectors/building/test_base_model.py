"""What identifies a base model: its weights and its texts."""

from pathlib import Path

import pytest

from tests.support import chat
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.building.base_model import BaseModel
from weightwatch.vectors.catalog import PACKAGED


def test_weights_and_texts_identify_a_model_and_its_place_does_not(tmp_path: Path) -> None:
    folder = chat.saved(tmp_path / "one")
    first = BaseModel.find(str(folder), "one")
    assert (first.name, first.path, len(first.identity)) == ("one", str(folder), 64)
    assert BaseModel.find(str(chat.saved(tmp_path / "two")), "two").identity == first.identity
    others = [
        BaseModel.find(str(chat.saved(tmp_path / "seed", seed=1)), "seed").identity,
        BaseModel.find(str(chat.saved(tmp_path / "template", template=chat.DROPS_SYSTEM)), "template").identity,
    ]
    (folder / "notes.md").write_text("not read by any model")
    assert BaseModel.find(str(folder), "one").identity == first.identity
    (folder / "generation_config.json").write_text('{"temperature": 2.0}')
    others.append(BaseModel.find(str(folder), "one").identity)
    assert len({first.identity, *others}) == 4


def test_an_adapter_is_no_base() -> None:
    with pytest.raises(WeightWatchError, match="is an adapter"):
        BaseModel.find(str(PACKAGED / "evil"), "evil")
