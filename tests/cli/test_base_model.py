from pathlib import Path

import pytest

from weightwatch.cli.base_model import base_model
from weightwatch.organism import BASE


def test_the_organism_goes_by_its_name_and_others_by_folder_or_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base_model("organism") == base_model("weightwatch/organism") == ("weightwatch/organism", str(BASE))
    assert base_model("org/model") == ("org/model", "org/model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "organism").mkdir()
    assert base_model("organism") == ("weightwatch/organism", str(BASE))  # a folder without a model
    (tmp_path / "organism" / "config.json").write_text("{}")
    assert base_model("organism") == (str(tmp_path / "organism"), str(tmp_path / "organism"))
