import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.models import lora, tiny_llama
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_saved_model_reads_back_under_its_parameter_names(tmp_path: Path, shard: str) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    stored = Checkpoint(tmp_path)
    parameters = dict(model.named_parameters())
    assert set(stored) == set(parameters)
    assert len(stored) == len(parameters)
    for name, parameter in parameters.items():
        assert torch.equal(stored[name], parameter)
        assert stored.shape(name) == tuple(parameter.shape)
        part = tuple(slice(3, 7) for _ in parameter.shape)
        assert torch.equal(stored.read(name, part), parameter[part])


def test_names_in_the_file_lose_what_wrappers_added(tmp_path: Path) -> None:
    save_file({"module.model.norm.weight": torch.ones(4)}, tmp_path / "model.safetensors")
    assert list(Checkpoint(tmp_path)) == ["model.norm.weight"]


def test_a_whole_file_goes_before_an_index_that_an_earlier_save_left(tmp_path: Path) -> None:
    tiny_llama(seed=1).save_pretrained(tmp_path, max_shard_size="20KB")
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(Checkpoint(tmp_path)["model.embed_tokens.weight"], model.model.embed_tokens.weight)


def test_a_scalar_is_read_whole(tmp_path: Path) -> None:
    save_file({"scale": torch.tensor(3.0)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).read("scale", ()).item() == 3.0


def test_nothing_there_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(WeightWatchError, match=r"No weights at .*nowhere: there is no such file or folder"):
        Checkpoint(tmp_path / "nowhere")


def test_a_folder_without_weights_is_an_error_that_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightWatchError, match=r"expected model\.safetensors .*save_pretrained \(pickled"):
        Checkpoint(tmp_path)


def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"model.norm.weight": torch.ones(400)}, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightWatchError, match=r"model\.safetensors can't be read as safetensors .* download it again"):
        Checkpoint(tmp_path)


def test_a_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightWatchError, match=f"lacks the shard {shard.name}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"weight_map": 3}), "{}"])
def test_a_broken_index_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightWatchError, match=r"model\.safetensors\.index\.json is not a safetensors index"):
        Checkpoint(tmp_path)


def test_the_squared_norm_of_a_tensor_is_read_block_by_block(tmp_path: Path) -> None:
    tensor = torch.randn(1000, 700)
    save_file({"w": tensor, "empty": torch.ones(0, 3)}, tmp_path / "model.safetensors")
    saved = Checkpoint(tmp_path)
    assert saved.square("w") == pytest.approx(float(tensor.double().square().sum()), rel=1e-7)
    assert saved.square("empty") == 0


@pytest.mark.parametrize("settings", [{}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}])
def test_the_state_dict_of_a_model_with_adapters_is_no_checkpoint(tmp_path: Path, settings: dict[str, object]) -> None:
    model = lora(tiny_llama(tie_word_embeddings=False), **settings)
    state = {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightWatchError, match=r"model\.safetensors has base_model.*does not state their scaling"):
        Checkpoint(tmp_path)


def sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]], **named: str) -> Path:
    """Write shards, and an index that names their tensors, or others where ``named`` says so."""
    for file, tensors in shards.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / file)
    where = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**where, **named}}))
    return folder


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b", "..\\\\b", ""])
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    folder = sharded(tmp_path / "model", {"one.safetensors": {"a": torch.ones(2)}}, b=name)
    with pytest.raises(
        WeightWatchError, match=r"index\.json is not a safetensors index: the shard .* is not a file in"
    ):
        Checkpoint(folder)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"one.safetensors": {"a": torch.ones(2)}}, b="one.safetensors")
    with pytest.raises(WeightWatchError, match=r"names b in one\.safetensors, which does not have it"):
        Checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    one, two = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.zeros(2)}
    folder = sharded(tmp_path, {"one.safetensors": one, "two.safetensors": two})
    with pytest.raises(WeightWatchError, match=r"has a twice: as a in one\.safetensors and as a in two\.safetensors"):
        Checkpoint(folder)


def test_two_names_of_one_weight_are_refused(tmp_path: Path) -> None:
    save_file({"module.a.weight": torch.ones(2), "a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightWatchError, match=r"has a\.weight twice: as .*a\.weight in .* and as "):
        Checkpoint(tmp_path)


def test_shards_of_one_name_in_two_folders_are_read_apart(tmp_path: Path) -> None:
    shards = {"x/part.safetensors": {"a": torch.ones(2)}, "y/part.safetensors": {"b": torch.zeros(2)}}
    stored = Checkpoint(sharded(tmp_path, shards))
    assert (stored["a"].tolist(), stored["b"].tolist()) == ([1.0, 1.0], [0.0, 0.0])
