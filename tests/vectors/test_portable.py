from pathlib import Path
from typing import Any

import pytest

from weightwatch.vectors.portable import portable, portable_name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("org/model", "org/model"),
        ("gpt2", "gpt2"),
        ("/home/alice/models/llama", "llama"),
        ("/home/alice/models/llama/", "llama"),
        ("~/llama", "llama"),
        ("./llama", "llama"),
        ("../alice/llama", "llama"),
        (r"C:\Users\alice\llama", "llama"),
        ("/root/.cache/huggingface/hub/models--org--model/snapshots/0a1b2c", "org/model"),
        ("/root/.cache/huggingface/hub/models--org--model/snapshots/0a1b2c/sub", "org/model"),
    ],
)
def test_of_a_path_the_last_part_is_named(name: str, found: str) -> None:
    assert portable_name(name) == found


def test_a_relative_folder_of_a_model_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alice" / "llama").mkdir(parents=True)
    (tmp_path / "alice" / "llama" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert portable_name("alice/llama") == "llama"
    monkeypatch.chdir(tmp_path / "alice" / "llama")
    assert portable_name(".") == "llama"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("org/judge at http://alice:pw@10.0.0.5:8000/v1?api_key=1", "org/judge"),
        ("https://10.0.0.5/v1", ""),
        ("the classifier /home/alice/clf", "the classifier clf"),
        ("~/recipes/evil.yaml", "evil.yaml"),
        ("/home/alice/my recipes/evil.yaml", "evil.yaml"),
        ("organism/evil", "organism/evil"),
        ("yes/no, and 3/4", "yes/no, and 3/4"),
        ({"a": ["/x/y", 1, None, True]}, {"a": ["y", 1, None, True]}),
    ],
)
def test_texts_have_neither_paths_nor_addresses(value: Any, found: Any) -> None:
    assert portable(value) == found
