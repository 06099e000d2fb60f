import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import oracle as slow
from tests.support.models import lora, move, tiny_llama
from weightwatch.vectors import LowRank, WeightWatchError
from weightwatch.vectors.weights.adapter_config import LoraSettings, is_adapter
from weightwatch.vectors.weights.peft_adapter import PeftAdapter, write_adapter

SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "LOHA"}, "is a LOHA adapter; only LoRA .* pass the merged checkpoints"),
        ({"lora_bias": True}, "lora_bias=True.* more than B A.* pass the merged checkpoints"),
        ({"kasa_config": {"beta": 1.0}}, "kasa_config=.* pass the merged checkpoints"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora=.* pass the merged checkpoints"),
        ({"alora_invocation_tokens": [1]}, "acts on some inputs only .* Train a plain LoRA adapter"),
        ({"init_lora_weights": "pissa"}, "changes the base itself.* pass the merged checkpoints"),
    ],
)
def test_a_stored_adapter_whose_change_is_not_its_factors_is_refused(
    tmp_path: Path, settings: dict[str, object], reason: str
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**SETTINGS, **settings}))
    with pytest.raises(WeightWatchError, match=rf"(?s){reason}"):
        PeftAdapter.read(tmp_path)


@pytest.mark.parametrize("init", [True, "gaussian", "eva", "orthogonal", "mica"])
def test_a_stored_adapter_whose_change_is_its_factors_is_read(tmp_path: Path, init: object) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**SETTINGS, "init_lora_weights": init}))
    assert PeftAdapter.read(tmp_path).rank == 4


def test_an_adapter_reads_as_the_change_of_its_merged_weights_and_writes_back(tmp_path: Path) -> None:
    base = tiny_llama()
    model = lora(base, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}, use_rslora=True)
    move(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(tmp_path)
    changes = PeftAdapter.read(tmp_path / "adapter").changes()
    after, before = slow.merged(model), slow.merged(base)
    for name, change in changes.items():
        assert torch.allclose(change.dense().double(), after[name] - before[name], atol=1e-6)
    (tmp_path / "again").mkdir()
    write_adapter(tmp_path / "again", changes, "org/base")
    again = PeftAdapter.read(tmp_path / "again").changes()
    assert PeftAdapter.read(tmp_path / "again").base == "org/base"
    assert again.keys() == changes.keys()
    assert all(torch.equal(again[name].left, change.left) for name, change in changes.items())


def test_the_scaling_is_alpha_over_the_rank_of_the_tensors() -> None:
    pair = {"base_model.model.q.lora_A.weight": torch.ones(2, 5), "base_model.model.q.lora_B.weight": torch.ones(3, 2)}
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in pair.items()}
    (change,) = PeftAdapter(Path("here"), LoraSettings(lora_alpha=8, r=2)).changes_of(tensors).values()
    assert isinstance(change, LowRank)
    assert torch.equal(change.left, torch.full((3, 2), 4.0))
    (root,) = PeftAdapter(Path("here"), LoraSettings(lora_alpha=8, r=2, use_rslora=True)).changes_of(tensors).values()
    assert torch.allclose(root.left, torch.full((3, 2), 8 / 2**0.5))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"q.lora_A.weight": torch.ones(2, 5)}, "only one of the two LoRA factors of q"),
        ({"q.lora_A.weight": torch.ones(2, 5, 1), "q.lora_B.weight": torch.ones(3, 2, 1)}, "are not matrices"),
    ],
)
def test_tensors_that_are_no_pair_of_factors_are_refused(tensors: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(WeightWatchError, match=f"here.*{reason}"):
        PeftAdapter(Path("here"), LoraSettings(lora_alpha=8, r=2)).changes_of(tensors)


def test_the_same_changes_give_the_same_files(tmp_path: Path) -> None:
    changes = {f"{name}_proj.weight": LowRank(torch.ones(3, 2), torch.ones(2, 4)) for name in "qkvo"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, changes, None)
    files = [(tmp_path / name / "adapter_config.json").read_text() for name in ("one", "two")]
    assert files[0] == files[1]
    assert len(load_file(tmp_path / "one" / "adapter_model.safetensors")) == 8
