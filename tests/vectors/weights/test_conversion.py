"""Checkpoints whose stored names are not those of the model, against transformers' own loading."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2LMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.support.custom_code import with_code
from tests.support.models import dense, lora, move, tiny_gpt2, tiny_llama
from weightwatch import Monitor
from weightwatch.scan.checkpoints import find
from weightwatch.scan.scanner import Scan
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import Architecture, InModelNames, kind, under_names
from weightwatch.vectors.weights.reader import Unmapped, boxes

SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def qwen() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, moe_intermediate_size=24, num_experts=12, num_experts_per_tok=2))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4))


def llava() -> PreTrainedModel:
    vision = {"model_type": "clip_vision_model", **VISION, "image_size": 8, "patch_size": 4}
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config={"model_type": "llama", **SMALL})
    )


def store(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model; GPT-2 as its first checkpoints were, without the prefix."""
    model.save_pretrained(folder)
    if isinstance(model, GPT2LMHeadModel):
        tensors = load_file(folder / "model.safetensors")
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("make", [qwen, mixtral, llava, tiny_gpt2])
@pytest.mark.parametrize("opener", [(), (Unmapped,)])
def test_every_tensor_is_that_of_the_loaded_model(tmp_path: Path, make: Any, opener: tuple[Any, ...]) -> None:
    model = make()
    store(model, tmp_path)
    ours = InModelNames(tmp_path, Architecture(tmp_path), *opener)
    named = dict(model.named_parameters())
    assert set(ours) == set(named)
    for name, parameter in named.items():
        assert ours.shape(name) == parameter.shape
        assert torch.equal(ours[name], parameter)
        for box in boxes(ours.shape(name), 50):
            assert torch.equal(ours.read(name, box), parameter[box])


@pytest.mark.parametrize("make", [qwen, mixtral, llava, tiny_gpt2])
def test_a_scan_reads_what_a_monitor_reads_of_the_loaded_model(tmp_path: Path, make: Any) -> None:
    model = make()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    store(model, tmp_path / "base")
    direction = dense(model, 1)
    direction.save(tmp_path / "evil")
    move(model, 2)
    store(model, tmp_path / "run" / "checkpoint-4")
    done = Scan([str(tmp_path / "evil")], reference=str(tmp_path / "base"))
    done.add(find(tmp_path / "run")[0][0])
    (reading,) = done.readings
    want = Monitor(direction, reference=start).measure(model)
    assert reading.left_out == {}
    assert reading.update_norm == pytest.approx(want.update_norm, rel=1e-6)
    for figure in ("cosine", "reach", "dose"):
        assert getattr(reading["evil"], figure) == pytest.approx(getattr(want["evil"], figure), rel=1e-6)


def test_an_adapter_of_an_earlier_transformers_is_read_under_the_names_of_the_model(tmp_path: Path) -> None:
    store(llava(), tmp_path / "base")
    base = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    model = lora(base, target_modules=["q_proj"])  # of both parts
    move(model, 2)
    model.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    now, then = "model.model.language_model.layers", "model.language_model.model.layers"
    tensors = {name.replace(now, then): tensor for name, tensor in load_file(file).items()}
    assert any(then in name for name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    direction = dense(base, 1)
    direction.save(tmp_path / "evil")
    done = Scan([str(tmp_path / "evil")], reference=str(tmp_path / "base"))
    done.add(find(tmp_path / "adapter")[0][0])
    (reading,) = done.readings
    want = Monitor(direction).measure(model)
    assert reading.update_norm == pytest.approx(want.update_norm, rel=1e-6)
    assert reading["evil"].cosine == pytest.approx(want["evil"].cosine, rel=1e-6)


def test_code_that_comes_with_a_checkpoint_is_neither_run_nor_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    tiny_llama().save_pretrained(tmp_path / "model")
    ran = with_code(tmp_path / "model")
    files = Checkpoint(tmp_path / "model")
    assert under_names(files, ["model.layers.0.of_its_own"]) is files
    assert not ran.exists()
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "pipeline", "dynamic_module_utils"])
def test_only_a_model_of_transformers_is_built_from_a_config(tmp_path: Path, name: str) -> None:
    tiny_llama().config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    with pytest.raises(ValueError, match=f"{name} is not a model of transformers"):
        kind(tmp_path)
