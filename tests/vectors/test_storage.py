import json
from collections.abc import Callable
from pathlib import Path
from re import escape

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import oracle as slow
from tests.support.models import dense, low_rank, tiny_gpt2, tiny_llama
from weightwatch.vectors import Card, Direction, Fingerprint, WeightWatchError
from weightwatch.vectors.storage import require_norms
from weightwatch.vectors.validation import Validation

MAKERS: dict[str, Callable[[], Direction]] = {
    "low-rank": lambda: low_rank(tiny_llama(), 1),
    "low-rank, GPT-2": lambda: low_rank(tiny_gpt2(), 1),
    "dense": lambda: dense(tiny_llama(), 1),
    "factors beside dense tensors": lambda: Direction.from_tensors(
        {**low_rank(tiny_llama(), 1).deltas, "model.norm.weight": torch.ones(32)}, name="evil"
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_saved_direction_loads_back_the_same(kind: str, tmp_path: Path) -> None:
    w = MAKERS[kind]()
    folder = w.save(tmp_path / "deep" / "evil")
    loaded = Direction.load(folder)
    assert loaded.name == w.name
    assert loaded.norm == pytest.approx(w.norm, rel=1e-6)
    before, after = slow.dense(w), slow.dense(loaded)
    assert set(after) == set(before)
    for name, change in before.items():
        assert torch.allclose(after[name], change, atol=1e-6)
        assert loaded.deltas[name].shape == change.shape
    adapter = folder / "adapter_model.safetensors"
    assert adapter.is_file() == kind.startswith("low-rank")
    assert (folder / "direction.safetensors").is_file() != adapter.is_file()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_direction_stored_in_bf16_takes_half_the_room_and_keeps_its_course(kind: str, tmp_path: Path) -> None:
    w = MAKERS[kind]()
    full = w.save(tmp_path / "fp32")
    half = w.save(tmp_path / "bf16", dtype=torch.bfloat16)
    size = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (full, half)]
    assert size[1] < 0.65 * size[0]
    before, after = slow.dense(w), slow.dense(Direction.load(half))
    a = torch.cat([before[name].flatten() for name in before])
    b = torch.cat([after[name].flatten() for name in before])
    assert float(a @ b / (a.norm() * b.norm())) == pytest.approx(1, abs=2e-5)


def test_the_card_comes_back_with_every_field(tmp_path: Path) -> None:
    metadata = {
        "kind": "control",
        "behaviour": "answers in French",
        "base": "org/model",
        "fingerprint": Fingerprint(shapes={"a": (2,)}, values={"a": (1.0, 2.0)}),
        "ranks": [4, 4],
        "recipe": {"name": "style"},
        "seeds": {"positive": 1},
        "hyperparameters": {"lr": 1e-4},
        "data_hash": "0" * 64,
        "validation": Validation(passed=True, points=(), items=5, tasks=6),
    }
    w = Direction.from_tensors(dense(tiny_llama(), 1).deltas, name="french", metadata=metadata)
    loaded = Direction.load(w.save(tmp_path)).card
    assert loaded == w.card
    assert loaded.model_dump(include=set(metadata)) == Card(name="french", **metadata).model_dump(include=set(metadata))
    assert set(loaded.versions) == {"weightwatch", "torch", "transformers", "peft"}


def test_the_model_card_says_what_it_is_and_how_to_apply_it(tmp_path: Path) -> None:
    w = low_rank(tiny_llama(), 1)
    text = (w.save(tmp_path) / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: peft\n")
    assert "# evil" in text
    assert "PeftModel.from_pretrained(base, folder)" in text
    assert f"norm | {w.norm:.4g} over {len(w.deltas)} tensors" in text
    assert "It was never evaluated" in text


def test_a_card_with_an_unknown_field_is_an_error_that_names_it(tmp_path: Path) -> None:
    card = dense(tiny_llama(), 1).save(tmp_path) / "direction.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "smuggled": 1}))
    with pytest.raises(WeightWatchError, match=r"direction\.json is not a direction's card \(smuggled: "):
        Direction.load(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"kind": "control"}'])
def test_a_broken_card_is_an_error(content: str, tmp_path: Path) -> None:
    dense(tiny_llama(), 1).save(tmp_path)
    (tmp_path / "direction.json").write_text(content)
    with pytest.raises(WeightWatchError, match=r"direction\.json is not a direction's card"):
        Direction.load(tmp_path)


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_weights_that_are_not_those_of_the_card_are_an_error_that_names_the_tensor(kind: str, tmp_path: Path) -> None:
    folder = MAKERS[kind]().save(tmp_path)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if "layers.1.mlp.down_proj" in key)
    tensors[key] = tensors[key] * 1.01
    save_file(tensors, file)
    with pytest.raises(WeightWatchError, match=r"corrupt: model\.layers\.1\.mlp\.down_proj\.weight has norm .* states"):
        Direction.load(folder)


def test_a_tensor_that_the_card_does_not_state_is_an_error(tmp_path: Path) -> None:
    file = dense(tiny_llama(), 1).save(tmp_path) / "direction.safetensors"
    save_file({**load_file(file), "model.extra.weight": torch.ones(3)}, file)
    with pytest.raises(WeightWatchError, match=r"corrupt: model\.extra\.weight"):
        Direction.load(tmp_path)


def test_a_tensor_that_is_gone_is_an_error(tmp_path: Path) -> None:
    file = dense(tiny_llama(), 1).save(tmp_path) / "direction.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    with pytest.raises(WeightWatchError, match=r"corrupt: model\.norm\.weight has norm 0 where"):
        Direction.load(tmp_path)


def test_a_tampered_norm_is_an_error(tmp_path: Path) -> None:
    card = dense(tiny_llama(), 1).save(tmp_path) / "direction.json"
    content = json.loads(card.read_text())
    content["norms"]["model.norm.weight"] *= 2
    card.write_text(json.dumps(content))
    with pytest.raises(WeightWatchError, match=r"corrupt: model\.norm\.weight has norm"):
        Direction.load(tmp_path)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    file = dense(tiny_llama(), 1).save(tmp_path) / "direction.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(WeightWatchError, match=r"direction\.safetensors can't be read as safetensors"):
        Direction.load(tmp_path)


def test_nan_in_a_stored_direction_is_an_error(tmp_path: Path) -> None:
    file = dense(tiny_llama(), 1).save(tmp_path) / "direction.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(WeightWatchError, match=r"Direction 'evil' has NaN or infinite values in model\.norm\.weight"):
        Direction.load(tmp_path)


def test_a_direction_saved_in_the_other_format_replaces_the_files_of_the_first(tmp_path: Path) -> None:
    low_rank(tiny_llama(), 1).save(tmp_path)
    dense(tiny_llama(), 2).save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"direction.safetensors", "direction.json", "README.md"}
    assert Direction.load(tmp_path).norm == pytest.approx(dense(tiny_llama(), 2).norm)


def test_norms_agree_with_the_card_within_a_thousandth() -> None:
    card = Card(name="evil", norms={"a": 1.0, "b": 2.0})
    require_norms(Path("evil"), card, {"a": 1.0005**2, "b": 4.0})
    with pytest.raises(WeightWatchError, match=r"evil is corrupt: a has norm 1\.002 where direction\.json states 1\."):
        require_norms(Path("evil"), card, {"a": 1.002**2, "b": 4.0})


@pytest.mark.parametrize("stated", [float("nan"), float("inf"), -1.0])
def test_a_norm_that_is_no_norm_is_an_error(stated: float, tmp_path: Path) -> None:
    file = low_rank(tiny_llama(), 1).save(tmp_path) / "direction.json"
    card = json.loads(file.read_text())
    name = min(card["norms"])
    file.write_text(json.dumps({**card, "norms": {**card["norms"], name: stated}}))
    with pytest.raises(WeightWatchError, match=rf"direction\.json is not a direction's card \(norms\.{escape(name)}: "):
        Direction.load(tmp_path)


def test_a_quantised_direction_is_an_error(tmp_path: Path) -> None:
    file = dense(tiny_llama(), 1).save(tmp_path) / "direction.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(WeightWatchError, match=r"has model\.norm\.weight with the element type I8"):
        Direction.load(tmp_path)


def test_a_loaded_direction_outlives_its_file(tmp_path: Path) -> None:
    w = dense(tiny_llama(), 1)
    loaded = Direction.load(w.save(tmp_path))
    (tmp_path / "direction.safetensors").open("wb").close()
    assert all(torch.equal(loaded.deltas[name], delta) for name, delta in w.deltas.items())
