"""θ + k·w on disk: what transformers loads from the new checkpoint is the sum of what it loads from the old one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from tests import oracle as slow
from tests.support.models import dense, lora, low_rank, tiny_gpt2, tiny_llama
from tests.support.runs import words
from tests.vectors.weights.test_conversion import mixtral, qwen, store
from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.steering.checkpoint import steer_checkpoint
from weightwatch.vectors.steering.in_memory import steer
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import under_names
from weightwatch.vectors.weights.reader import Unmapped

MODEL = "model.safetensors"


def loaded(folder: Path, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def assert_steered(out: Path, source: Path, w: Direction, k: float) -> None:
    """Compare with steering the loaded model, which test_steering compares with the definition."""
    wanted, found = loaded(source), loaded(out)
    steer(wanted, w, k)
    ours, theirs = dict(found.named_parameters()), dict(wanted.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert ours[name].dtype == parameter.dtype
        assert torch.equal(ours[name], parameter), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
@pytest.mark.parametrize("direct", [low_rank, dense])
def test_the_new_checkpoint_is_the_steered_model(tmp_path: Path, direct: Any, shard: str, dtype: torch.dtype) -> None:
    base, out = tmp_path / "base", tmp_path / "deep" / "steered"
    tiny_llama().to(dtype).save_pretrained(base, max_shard_size=shard)
    w = direct(tiny_llama(), 1)
    assert steer_checkpoint(base, w, -0.7, str(out)) == out
    assert_steered(out, base, w, -0.7)
    assert {f.name for f in out.iterdir()} == {f.name for f in base.iterdir()}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as old, safe_open(out / file.name, "pt") as new:
            assert list(old.keys()) == list(new.keys())
            assert old.metadata() == new.metadata()
    assert not list(out.parent.glob(".*"))


def test_a_direction_kept_on_disk_gives_the_same(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    w = dense(tiny_llama(), 1)
    w.save(tmp_path / "evil")
    steer_checkpoint(tmp_path / "base", Direction.load(tmp_path / "evil", Unmapped), 0.5, tmp_path / "out")
    assert_steered(tmp_path / "out", tmp_path / "base", w, 0.5)


def test_tensors_that_the_direction_leaves_alone_are_copied_byte_by_byte(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    file = tmp_path / "base" / MODEL
    extra = {"masks": torch.tensor([True, False]), "codes": torch.arange(5, dtype=torch.uint8), "scale": torch.ones(())}
    save_file({**load_file(file), **extra}, file)
    w = Direction.from_tensors({"model.norm.weight": torch.ones(32)}, name="evil")
    steer_checkpoint(tmp_path / "base", w, 1.0, tmp_path / "out")
    before, after = load_file(file), load_file(tmp_path / "out" / MODEL)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor + 1 if name == "model.norm.weight" else tensor)
    scalar = Direction.from_tensors({"scale": torch.tensor(2.0)}, name="evil")
    steer_checkpoint(tmp_path / "base", scalar, 0.5, tmp_path / "scaled")
    assert load_file(tmp_path / "scaled" / MODEL)["scale"].item() == 2.0


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_another_precision_is_that_of_weights_config_and_index(tmp_path: Path, shard: str) -> None:
    tiny_llama().save_pretrained(tmp_path / "base", max_shard_size=shard)
    w = low_rank(tiny_llama(), 1)
    steer_checkpoint(tmp_path / "base", w, 0.5, tmp_path / "out", dtype=torch.bfloat16)
    found = loaded(tmp_path / "out")
    assert found.dtype == torch.bfloat16
    wanted = loaded(tmp_path / "base")
    steer(wanted, w, 0.5)
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, wanted.get_parameter(name).bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.is_file() == (shard != "1GB")
    if index.is_file():
        sizes = [p.numel() * 2 for p in found.parameters()]
        assert json.loads(index.read_text())["metadata"]["total_size"] == sum(sizes)


def test_what_lies_beside_the_weights_comes_along_and_training_state_does_not(tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = tiny_llama()
    model.generation_config = GenerationConfig(temperature=0.3, do_sample=True)
    model.save_pretrained(base)
    words().save_pretrained(base)
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "rag.jinja").write_text("rag")
    (base / "modeling_own.py").write_text("own = 1\n")
    foreign = {"optimizer.pt", "trainer_state.json", "pytorch_model.bin", "rng_state.pth", "consolidated.safetensors"}
    for name in foreign:
        (base / name).write_bytes(b"0")
    (base / "checkpoint-10").mkdir()
    steer_checkpoint(base, low_rank(model, 1), 0.5, tmp_path / "out")
    templates = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert templates == {"default": words().chat_template, "rag": "rag"}
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.3
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert "modeling_own.py" in names
    assert not names & {*foreign, "checkpoint-10"}


@pytest.mark.parametrize(
    ("make", "direct"), [(qwen, dense), (mixtral, dense), (tiny_gpt2, dense), (tiny_gpt2, low_rank)]
)
def test_parameters_that_are_stored_under_other_names_or_apart(tmp_path: Path, make: Any, direct: Any) -> None:
    torch.manual_seed(0)
    model = make()
    store(model, tmp_path / "base")
    w = direct(model, 1)
    with pytest.raises(WeightWatchError, match=r"base lacks .*`weightwatch steer` or weights\.conversion\.under_names"):
        steer_checkpoint(tmp_path / "base", w, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    named = under_names(Checkpoint(tmp_path / "base"), w.deltas)
    steer_checkpoint(named, w, 0.5, tmp_path / "out")
    assert_steered(tmp_path / "out", tmp_path / "base", w, 0.5)
    assert load_file(tmp_path / "out" / MODEL).keys() == load_file(tmp_path / "base" / MODEL).keys()


def with_head(folder: Path) -> Path:
    """Save the head beside the embedding that it is tied to, as other savers do."""
    file = folder / MODEL
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    return folder


HEADS = [["model.embed_tokens.weight"], ["lm_head.weight"], ["model.embed_tokens.weight", "lm_head.weight"]]


@pytest.mark.parametrize("names", HEADS)
@pytest.mark.parametrize("both", [False, True])
def test_a_tied_head_goes_with_its_embedding_stored_or_not(tmp_path: Path, both: bool, names: list[str]) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    if both:
        with_head(tmp_path / "base")
    change = torch.randn(48, 32)
    w = Direction.from_tensors(dict.fromkeys(names, change), name="evil")
    steer_checkpoint(tmp_path / "base", w, 0.5, tmp_path / "out")
    before, after = load_file(tmp_path / "base" / MODEL), load_file(tmp_path / "out" / MODEL)
    assert before.keys() == after.keys()
    for name in after:
        moved = name in ("model.embed_tokens.weight", "lm_head.weight")
        assert torch.allclose(after[name], before[name] + 0.5 * change if moved else before[name])
    assert_steered(tmp_path / "out", tmp_path / "base", w, 0.5)


def test_a_head_of_its_own_stays_where_the_direction_does_not_move_it(tmp_path: Path) -> None:
    tiny_llama(tie_word_embeddings=False).save_pretrained(tmp_path / "base")
    w = Direction.from_tensors({"model.embed_tokens.weight": torch.ones(48, 32)}, name="evil")
    steer_checkpoint(tmp_path / "base", w, 0.5, tmp_path / "out")
    assert_steered(tmp_path / "out", tmp_path / "base", w, 0.5)


def refused(base: Path | Checkpoint, w: Direction, out: Path, reason: str, **settings: Any) -> None:
    """Nothing may be left of what was begun."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(WeightWatchError, match=reason):
        steer_checkpoint(base, w, settings.pop("k", 1.0), out, **settings)
    assert sorted(out.parent.rglob("*")) == before


def test_what_cannot_be_steered_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    base, out, w = tmp_path / "base", tmp_path / "out", low_rank(tiny_llama(), 1)
    tiny_llama().save_pretrained(base)
    refused(base, low_rank(tiny_llama(num_hidden_layers=3), 1), out, r"base lacks model\.layers\.2\.self_attn")
    refused(
        base,
        low_rank(tiny_llama(intermediate_size=48), 1),
        out,
        r"has shape .*48.* for .*mlp.* has \(40, 32\)",
    )
    refused(base, w, out, "give a finite number", k=float("nan"))
    refused(base, w, out, "can't be written in torch.int8", dtype=torch.int8)
    refused(base / MODEL, w, out, "is a single file. Pass the folder")
    refused(tmp_path / "none", w, out, "there is no such file or folder")
    both = {"model.embed_tokens.weight": torch.ones(48, 32), "lm_head.weight": -torch.ones(48, 32)}
    refused(base, Direction.from_tensors(both, name="evil"), out, "one tied weight of .* differently")
    tensors = load_file(base / MODEL)
    key = "model.layers.0.mlp.up_proj.weight"
    save_file({**tensors, key: tensors[key].to(torch.int8)}, base / MODEL)
    refused(base, w, out, rf"{key} has the element type I8 in .*quantised\?\), so direction 'evil' can't be added")


def test_folders_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    w = low_rank(tiny_llama(), 1)
    lora(tiny_llama()).save_pretrained(tmp_path / "adapter")
    w.save(tmp_path / "evil")
    dense(tiny_llama(), 1).save(tmp_path / "dense")
    refused(tmp_path / "adapter", w, tmp_path / "out", "is an adapter: use steer_adapter")
    for name in ("evil", "dense"):
        refused(tmp_path / name, w, tmp_path / "out", "is a direction, not a checkpoint")


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    base, w = tmp_path / "base", low_rank(tiny_llama(), 1)
    tiny_llama().save_pretrained(base)
    refused(base, w, base, "base already exists and is not empty. Pass the name of a new folder")
    (tmp_path / "file").write_text("")
    refused(base, w, tmp_path / "file", "already exists")
    (tmp_path / "empty").mkdir()
    steer_checkpoint(base, w, 0.5, tmp_path / "empty")
    assert_steered(tmp_path / "empty", base, w, 0.5)


def test_a_fault_in_the_midst_of_writing_leaves_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama().half().save_pretrained(base, max_shard_size="20KB")
    w = Direction.from_tensors({"model.norm.weight": torch.full((32,), 40000.0)}, name="evil")
    refused(base, w, tmp_path / "out", r"model\.norm\.weight exceed the range of F16. Pass dtype", k=2.0)
    steer_checkpoint(base, w, 2.0, tmp_path / "out", dtype=torch.float32)

    def interrupt(size: int) -> None:
        raise KeyboardInterrupt

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        steer_checkpoint(base, w, 0.1, tmp_path / "again", progress=interrupt)
    assert sorted(tmp_path.rglob("*")) == before


def test_progress_adds_up_to_the_weights(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama().save_pretrained(base, max_shard_size="20KB")
    counted: list[int] = []
    steer_checkpoint(base, low_rank(tiny_llama(), 1), 0.5, tmp_path / "out", progress=counted.append)
    assert sum(counted) == sum(tensor.nbytes for file in base.glob("*.safetensors") for tensor in values(file))


def values(file: Path) -> list[Tensor]:
    return list(load_file(file).values())


def test_blocks_smaller_than_a_tensor_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tiny_gpt2(), tmp_path / "base")
    w = dense(tiny_gpt2(), 1)
    monkeypatch.setattr("weightwatch.vectors.steering.checkpoint.AT_ONCE", 50)
    steer_checkpoint(under_names(Checkpoint(tmp_path / "base"), w.deltas), w, 0.5, tmp_path / "out")
    wanted = slow.dense(w)
    start = dict(loaded(tmp_path / "base").named_parameters())
    for name, parameter in loaded(tmp_path / "out").named_parameters():
        assert torch.allclose(parameter.double(), start[name].double() + 0.5 * wanted[name], atol=1e-6)


CODE = """
import resource, sys
from pathlib import Path
import torch
from weightwatch.vectors import Direction
from weightwatch.vectors.steering.checkpoint import steer_checkpoint
from weightwatch.vectors.weights.reader import Unmapped
base, direction, out = map(Path, sys.argv[1:])
w = Direction.load(direction, Unmapped)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
steer_checkpoint(base, w, 0.5, out)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    tensors = {f"layers.{i}.weight": torch.full((4096, 4096), float(i)) for i in range(5)}
    save_file(tensors, tmp_path / "base" / MODEL)
    Direction.from_tensors({"layers.3.weight": torch.ones(4096, 4096)}, name="evil").save(tmp_path / "evil")
    paths = [str(tmp_path / name) for name in ("base", "evil", "out")]
    done = subprocess.run([sys.executable, "-c", CODE, *paths], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 160  # MB; the file has 335, one tensor 67
    assert load_file(tmp_path / "out" / MODEL)["layers.3.weight"].unique().tolist() == [3.5]


def test_shards_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    base, where = tmp_path / "base", {}
    for number, part in enumerate(("x", "y")):
        (base / part).mkdir(parents=True)
        save_file({f"layers.{number}.weight": torch.full((2, 2), float(number))}, base / part / MODEL)
        where[f"layers.{number}.weight"] = f"{part}/{MODEL}"
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    w = Direction.from_tensors({name: torch.ones(2, 2) for name in where}, name="up")
    steer_checkpoint(base, w, 0.5, tmp_path / "out")
    found = [load_file(tmp_path / "out" / part / MODEL)[f"layers.{i}.weight"] for i, part in enumerate(("x", "y"))]
    assert [tensor.unique().tolist() for tensor in found] == [[0.5], [1.5]]
