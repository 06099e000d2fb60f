from pathlib import Path

import pytest

from tests.support.commands import refused
from tests.support.models import low_rank, tiny_llama
from weightwatch import Monitor
from weightwatch.vectors import WeightWatchError, convert_gguf
from weightwatch.vectors.weights.gguf import refuse_gguf


@pytest.fixture(params=["a file", "a folder"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base in GGUF, as a user passes it."""
    file = tmp_path / "base" / "base.Q4_1.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    return file if request.param == "a file" else file.parent


def test_a_gguf_base_is_refused_with_the_way_to_convert_it(given: Path, evil: Path, tmp_path: Path) -> None:
    way = "Convert it and pass the new folder: python -c \"from weightwatch.vectors import convert_gguf; convert_gguf('"
    out = ("--output", tmp_path / "out")
    refused(way, "build", "organism/evil", "--model", given, *out)
    refused(way, "show", evil, "--evaluate", "--recipe", "refusal", "--model", given)
    refused(way, "steer", given, evil, *out)
    refused(way, "compare", evil, "--base", given)
    refused(way, "scan", given, "--direction", evil)
    with pytest.raises(WeightWatchError, match="convert_gguf"):
        Monitor([low_rank(tiny_llama(), 1)], reference=given)


def test_safetensors_weights_beside_a_gguf_file_are_taken(base: Path) -> None:
    (base / "model.gguf").write_bytes(b"GGUF")
    refuse_gguf(base)
    refuse_gguf(base / "none")


def test_what_is_not_converted_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = tmp_path / "base.gguf", tmp_path / "out"
    with pytest.raises(WeightWatchError, match=r"There is no file .*base\.gguf"):
        convert_gguf(file, out)
    file.write_bytes(b"GGUF")
    with pytest.raises(WeightWatchError, match="Pass a new folder"):
        convert_gguf(file, tmp_path)
    with pytest.raises(WeightWatchError, match=r"transformers can't read .*base\.gguf \("):
        convert_gguf(file, out)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightWatchError, match=r"without gguf and sentencepiece\. Run pip install 'weightwatch\["):
        convert_gguf(file, out)
    assert not out.exists()
