from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.support import chat
from tests.support.commands import refused
from tests.support.models import low_rank, tiny_llama
from weightwatch import Monitor
from weightwatch.vectors import WeightWatchError, convert_gguf
from weightwatch.vectors.weights.checkpoint import Checkpoint
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


def written(file: Path, model: LlamaForCausalLM) -> Path:
    """Write a model as llama.cpp does: tied embeddings, a byte-level tokenizer, a chat template."""
    config, known = model.config, chat.tokenizer()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(known.get_vocab(), key=known.get_vocab().__getitem__))
    writer.add_token_merges([])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(chat.WITH_SYSTEM)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        writer.add_tensor(names.get_name(name, (".weight",)), weight.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_file_becomes_an_ordinary_folder_in_bf16(tmp_path: Path) -> None:
    model = tiny_llama(vocab_size=len(chat.tokenizer()))
    made = convert_gguf(written(tmp_path / "base.gguf", model), tmp_path / "base")
    found = AutoModelForCausalLM.from_pretrained(made, dtype="auto")
    assert found.dtype == torch.bfloat16
    assert not hasattr(found.config, "quantization_config")
    assert set(Checkpoint(made)) == {name for name, _ in model.named_parameters()}  # the tied head once
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        assert torch.equal(found.get_parameter(name), model.get_parameter(name).bfloat16())
    known = AutoTokenizer.from_pretrained(made)
    assert known.chat_template == chat.WITH_SYSTEM
    assert known.decode(known("Is it?", add_special_tokens=False)["input_ids"]) == "Is it?"
