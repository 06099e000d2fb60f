import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from tests import oracle as slow
from tests.support.models import lora, move, tiny_llama
from weightwatch.vectors import LowRank, WeightWatchError
from weightwatch.vectors.weights.adapter_config import LoraSettings, NotFactorsError, is_adapter
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
    for name in "abcdefgh":  # the order of two notes is random in what safetensors writes
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, changes, None)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert len({file.read_bytes() for file in tmp_path.glob(f"*/{name}")}) == 1
    assert len(load_file(tmp_path / "a" / "adapter_model.safetensors")) == 8


def test_what_is_transposed_is_stored_for_each_weight(tmp_path: Path) -> None:
    """One flag for both, which is all that the settings have, turns one of two square weights around."""
    changes = {
        "h.0.attn.c_proj.weight": LowRank(torch.randn(8, 2), torch.randn(2, 8), transposed=True),
        "lm_head.weight": LowRank(torch.randn(8, 2), torch.randn(2, 8)),
        "wte.weight": LowRank(torch.randn(8, 2), torch.randn(2, 8), transposed=True, limited="left"),
        "tokens.weight": LowRank(torch.randn(8, 2), torch.randn(2, 8), limited="left"),
    }
    write_adapter(tmp_path, changes, "org/base")
    again = PeftAdapter.read(tmp_path).changes()
    for name, change in changes.items():
        assert torch.equal(again[name].dense(), change.dense()), name


def test_an_adapter_of_linear_modules_and_conv1d_reads_as_the_change_of_its_merged_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_embd=32, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        model = lora(base, target_modules=["attn.c_proj", "lm_head"])
    move(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    after, before = slow.merged(model), slow.merged(base)
    for name, change in PeftAdapter.read(tmp_path / "adapter").changes().items():  # its base is where the settings say
        assert torch.allclose(change.dense().double(), after[name] - before[name], atol=1e-6), name
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(WeightWatchError, match="adapts both linear modules and Conv1D"):
        PeftAdapter.read(tmp_path / "adapter").changes()


def test_ranks_that_differ_between_settings_and_tensors_are_refused(tmp_path: Path) -> None:
    model = lora(tiny_llama(), rank_pattern={"q_proj": 2})
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    for change, rank in (({"r": 3}, 3), ({"rank_pattern": {"q_proj": 4}}, 4)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(WeightWatchError, match=rf"states rank {rank} for model\.layers\.0.* tensors have rank"):
            PeftAdapter.read(tmp_path).changes()


def test_a_rank_of_one_module_is_not_that_of_another_whose_name_ends_with_it(tmp_path: Path) -> None:
    sizes = {"q.weight": 2, "x.q.weight": 3, "k.weight": 3}
    changes = {name: LowRank(torch.ones(5, rank), torch.ones(rank, 4)) for name, rank in sizes.items()}
    write_adapter(tmp_path, changes, None)
    again = PeftAdapter.read(tmp_path).changes()
    assert all(torch.equal(again[name].dense(), change.dense()) for name, change in changes.items())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"q.lora_A.weight": torch.ones(0), "q.lora_B.weight": torch.ones(0)}, "gather the weights before they"),
        ({"q.lora_A.weight": torch.ones(2, 5), "q.lora_B.weight": torch.ones(3, 4)}, "which have no product"),
        ({"q.lora_A.weight": torch.ones(2, 5).int(), "q.lora_B.weight": torch.ones(3, 2)}, "Save them unquantised"),
    ],
)
def test_factors_without_a_product_are_refused(tensors: dict[str, torch.Tensor], reason: str) -> None:
    with pytest.raises(WeightWatchError, match=reason):
        PeftAdapter(Path("here"), LoraSettings(lora_alpha=8, r=2)).changes_of(tensors)


def test_tensors_beside_the_factors_are_named(tmp_path: Path) -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), target_modules=["q_proj"], modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path)
    adapter = PeftAdapter.read(tmp_path)
    assert adapter.others(adapter.tensors()) == ["lm_head.weight"]
    with pytest.raises(NotFactorsError, match=r"lm_head\.weight.*modules_to_save=\['lm_head'\].*merged checkpoints"):
        adapter.changes()


def test_a_pickled_adapter_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(SETTINGS))
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(WeightWatchError, match=r"adapter_model\.bin is pickled.*save it with save_pretrained"):
        PeftAdapter.read(tmp_path).changes()


def test_a_change_that_peft_has_no_place_for_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match="experts is not the weight of a module"):
        write_adapter(tmp_path, {"experts": LowRank(torch.ones(3, 2), torch.ones(2, 4))}, None)
