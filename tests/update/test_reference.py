"""θ₀ in memory and on disk, read box by box."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.models import tiny_llama
from weightwatch.update.reference import Reference, StateDict, places, values_at
from weightwatch.vectors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint

VALUES = torch.arange(12.0).view(3, 4)


def test_places_are_the_indices_of_positions() -> None:
    assert places(torch.tensor([0, 5, 11]), (3, 4)).tolist() == [[0, 0], [1, 1], [2, 3]]
    assert places(torch.tensor([0]), ()).shape == (1, 0)


def test_single_values_are_those_of_the_flattened_tensor() -> None:
    weights = StateDict({"w": VALUES.bfloat16(), "scale": torch.tensor(7.0)})
    found = values_at(weights, "w", torch.tensor([11, 0, 6]))
    assert found.dtype == torch.float32
    assert found.tolist() == [11.0, 0.0, 6.0]
    assert values_at(weights, "scale", torch.tensor([0])).tolist() == [7.0]


def test_a_state_dict_is_read_under_the_names_of_the_plain_model() -> None:
    weights = StateDict({"module.base_model.model.model.norm.weight": VALUES})
    assert "model.norm.weight" in weights
    assert "module.base_model.model.model.norm.weight" not in weights
    assert weights.shape("model.norm.weight") == (3, 4)
    assert torch.equal(weights.read("model.norm.weight", (slice(1, 3), slice(0, 2))), VALUES[1:3, :2])
    assert weights.memory("model.norm.weight") == VALUES.untyped_storage().data_ptr()


def test_a_reference_is_made_of_a_state_dict_a_checkpoint_or_nothing(tmp_path: Path) -> None:
    save_file({"w": VALUES}, tmp_path / "model.safetensors")
    assert isinstance(Reference.of({"w": VALUES}).weights, StateDict)
    assert isinstance(Reference.of(tmp_path).weights, Checkpoint)
    assert isinstance(Reference.of(str(tmp_path)).weights, Checkpoint)
    assert Reference.of(None) == Reference(None, {})
    with pytest.raises(WeightWatchError, match="nowhere"):
        Reference.of(tmp_path / "nowhere")


def test_a_reference_of_parts_is_an_error() -> None:
    class Sharded(torch.Tensor):
        full_tensor = None  # as a DTensor has it

    start = {name: tensor.clone().as_subclass(Sharded) for name, tensor in tiny_llama().state_dict().items()}
    with pytest.raises(WeightWatchError, match=r"is spread over processes .* the path of the base checkpoint"):
        Reference.of(start)
