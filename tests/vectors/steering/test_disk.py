"""Steering models on disk, looked at through transformers and PEFT."""

import json
from pathlib import Path
from re import escape

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests import oracle as slow
from tests.support.models import lora, low_rank, move, tiny_gpt2, tiny_llama
from tests.support.models import weights_on_disk as weights
from tests.vectors.weights.test_conversion import store
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.steering.disk import steer_on_disk


def assert_sum(folder: Path, base: Path, *terms: tuple[Path, float], tolerance: float = 1e-6) -> None:
    found, wanted = weights(folder), weights(base)
    for direction, k in terms:
        for name, change in slow.dense(Direction.load(direction)).items():
            wanted[name] = wanted[name] + k * change
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=tolerance) for name in wanted)


def test_a_checkpoint_becomes_a_checkpoint(base: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    steered = steer_on_disk(str(base), [(str(evil), -0.5)], out)
    assert steered.to_json() == {
        "out": str(out),
        "form": "checkpoint",
        "model": str(base),
        "directions": [{"name": str(evil), "coefficient": -0.5}],
        "tensors": len(Direction.load(evil).deltas),
    }
    assert f"{steered}".startswith(f"{out}: checkpoint, {base} - 0.5·{evil}, ")
    assert_sum(out, base, (evil, -0.5))


def test_a_sum_of_directions_is_added(base: Path, evil: Path, style: Path, tmp_path: Path) -> None:
    steer_on_disk(str(base), [(str(evil), 0.1), (str(style), 2.0)], tmp_path / "out")
    assert_sum(tmp_path / "out", base, (evil, 0.1), (style, 2.0))


def test_progress_counts_the_bytes_of_all_files(base: Path, evil: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    steer_on_disk(str(base), [(str(evil), 1.0)], tmp_path / "out", progress=lambda *done: told.append(done))
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    done = [so_far for so_far, _ in told]
    assert {total for _, total in told} == {size}
    assert done == sorted(done)
    assert 0.8 * size < done[-1] <= size  # headers are not counted


def test_only_what_is_added_is_written_as_an_adapter(base: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert steer_on_disk(str(base), [(str(evil), 0.5)], out, as_adapter=True).form == "adapter"
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    start = slow.merged(plain)
    found = slow.merged(PeftModel.from_pretrained(plain, out))
    for name, change in slow.dense(Direction.load(evil)).items():
        assert torch.allclose(found[name] - start[name], 0.5 * change, atol=1e-6)


def test_an_adapter_is_steered_as_an_adapter(base: Path, evil: Path, tmp_path: Path) -> None:
    model = lora(tiny_llama())
    move(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    assert steer_on_disk(str(tmp_path / "adapter"), [(str(evil), -2.0)], tmp_path / "out").form == "adapter"
    both = [slow.merged(PeftModel.from_pretrained(tiny_llama(), tmp_path / name)) for name in ("adapter", "out")]
    for name, change in slow.dense(Direction.load(evil)).items():
        if name != "model.embed_tokens.weight":  # tied: PEFT changes what looks it up, and not the head
            assert torch.allclose(both[1][name] - both[0][name], -2 * change, atol=1e-5)


def test_tensors_that_transformers_renames_are_found(tmp_path: Path) -> None:
    store(tiny_gpt2(), tmp_path / "base")
    evil = low_rank(tiny_gpt2(), 1).save(tmp_path / "evil")
    steer_on_disk(str(tmp_path / "base"), [(str(evil), 0.5)], tmp_path / "out")
    assert_sum(tmp_path / "out", tmp_path / "base", (evil, 0.5))
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(tmp_path / "base" / "model.safetensors").keys()
    )


def test_what_cannot_be_steered_is_an_error_and_nothing_is_written(
    base: Path, evil: Path, style: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    narrow = low_rank(tiny_llama(intermediate_size=48), 1).save(tmp_path / "narrow")

    def refused(reason: str, model: object, direction: object, target: Path = out, as_adapter: bool = False) -> None:
        with pytest.raises(WeightWatchError, match=escape(reason)):
            steer_on_disk(str(model), [(str(direction), 1.0)], target, as_adapter=as_adapter)

    refused("org/none is not a local folder, nor a model in the Hub's cache", "org/none", evil)
    refused("Unknown direction 'evli'", base, "evli")
    refused("already exists and is not empty", base, evil, base)
    refused("which no adapter can express", base, style, as_adapter=True)
    for as_adapter in (False, True):
        refused("Use a direction built from this model", base, narrow, as_adapter=as_adapter)
    assert not out.exists()
