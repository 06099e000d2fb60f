"""Finding checkpoints, their order, and whether they are complete."""

import json
import os
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from tests.support.models import lora, tiny_llama
from tests.support.runs import full
from weightwatch.scan.checkpoints import checkpoint_at, find, locate, run
from weightwatch.vectors import WeightWatchError


def test_a_run_is_read_by_its_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3"):
        full(tmp_path / name)
    assert [(one.name, one.step) for one in run(tmp_path)] == [
        ("checkpoint-3", 3),
        ("checkpoint-20", 20),
        ("checkpoint-100", 100),
    ]


@pytest.mark.parametrize(
    ("name", "step"), [("step_100", 100), ("epoch_2", 2), ("epoch2", 2), ("iter-0040-ckpt", 40), ("7", 7)]
)
def test_the_step_is_the_number_in_the_name(tmp_path: Path, name: str, step: int) -> None:
    full(tmp_path / name)
    assert [one.step for one in run(tmp_path)] == [step]


def test_the_state_of_a_trainer_knows_better_than_the_name(tmp_path: Path) -> None:
    full(tmp_path / "epoch_1", step=40)
    full(tmp_path / "best", step=20)
    assert [(one.name, one.step) for one in run(tmp_path)] == [("best", 20), ("epoch_1", 40)]


def test_a_link_to_a_checkpoint_beside_it_is_not_one_more(tmp_path: Path) -> None:
    full(tmp_path / "run" / "checkpoint-3", step=3)
    (tmp_path / "run" / "last").symlink_to("checkpoint-3")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "step-3").symlink_to(tmp_path / "run" / "checkpoint-3")
    assert [one.name for one in run(tmp_path / "run")] == ["checkpoint-3"]
    assert [one.name for one in run(tmp_path / "links")] == ["step-3"]


def test_a_model_name_is_no_step(tmp_path: Path) -> None:
    found, is_run = find(full(tmp_path / "Qwen2.5-0.5B-tuned"))
    assert [(one.step, one.adapter, is_run) for one in found] == [(0, False, False)]


def test_adapters_files_and_single_folders_are_found(tmp_path: Path) -> None:
    lora(tiny_llama()).save_pretrained(tmp_path / "run" / "checkpoint-5")
    (adapter,), is_run = find(tmp_path / "run")
    assert (adapter.adapter, adapter.step, is_run) == (True, 5, True)
    full(tmp_path / "full" / "checkpoint-9")
    (file,), is_run = find(tmp_path / "full" / "checkpoint-9" / "model.safetensors")
    assert (file.adapter, file.step, is_run) == (False, 9, False)


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightWatchError, match=r"No checkpoint in .*empty: expected safetensors weights"):
        find(tmp_path / "empty")
    with pytest.raises(WeightWatchError, match="there is no such file or folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(WeightWatchError, match="can't be downloaded from the Hugging Face Hub"):
        locate("someone/something")
    whole = full(tmp_path / "cut")
    os.truncate(whole / "model.safetensors", 5000)
    with pytest.raises(WeightWatchError, match=r"is incomplete: model.safetensors has 5000 of \d+ bytes"):
        find(whole)


def test_a_sharded_checkpoint_is_complete_with_its_index_and_all_its_shards(tmp_path: Path) -> None:
    folder = full(tmp_path / "checkpoint-1", max_shard_size="20KB")
    one = checkpoint_at(folder)
    assert one is not None
    assert one.incomplete() is None
    shard = sorted(folder.glob("*.safetensors"))[-1]
    content = shard.read_bytes()
    for part, lack in ((b"", "no safetensors header"), (content[:30], "cut short"), (content[:-1], "bytes")):
        shard.write_bytes(part)
        assert lack in str(one.incomplete())
    shard.unlink()
    assert one.incomplete() == f"{shard.name} is missing"
    shard.write_bytes(content)
    (folder / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor" in str(one.incomplete())


def test_an_adapter_with_a_name_of_its_own_is_found_in_its_subfolder(tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]), adapter_name="mine")
    model.save_pretrained(tmp_path / "checkpoint-5")
    (one,), is_run = find(tmp_path)
    assert is_run
    assert (one.name, one.step, one.adapter, one.within) == ("checkpoint-5", 5, True, "mine")
    assert one.incomplete() is None
    assert one.size > 0
    os.truncate(tmp_path / "checkpoint-5" / "mine" / "adapter_model.safetensors", 100)
    assert "adapter_model.safetensors" in str(one.incomplete())


def test_a_pickled_adapter_is_called_so_and_not_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint-5"
    lora(tiny_llama()).save_pretrained(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    for what in (folder, tmp_path / "run"):
        with pytest.raises(WeightWatchError, match=r"adapter_model\.bin is pickled.*save it with save_pretrained"):
            find(what)


def test_merged_weights_beside_the_settings_of_an_adapter_are_a_full_checkpoint(tmp_path: Path) -> None:
    full(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    one = checkpoint_at(tmp_path)
    assert one is not None
    assert (one.adapter, one.incomplete()) == (False, None)


@pytest.mark.parametrize("names", [{"a": None}, {"a": 5}, ["a"], None])
def test_an_index_that_names_no_files_is_damaged(tmp_path: Path, names: object) -> None:
    folder = full(tmp_path / "checkpoint-1", max_shard_size="20KB")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    one = checkpoint_at(folder)
    assert one is not None
    assert str(one.incomplete()).startswith("model.safetensors.index.json is damaged or incomplete (")
