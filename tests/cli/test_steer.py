"""``weightwatch steer``, ``compare`` and ``push`` as a user calls them, on files that real models left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests import oracle as slow
from tests.support.commands import call, refused, told
from tests.support.hub import TOKEN, serving
from tests.support.models import dense, lora, low_rank, move, tiny_gpt2, tiny_llama
from tests.vectors.test_hub import Machine
from tests.vectors.weights.test_conversion import store
from weightwatch.cli.main import BAD_INPUT
from weightwatch.vectors import Direction, Fingerprint


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "base", max_shard_size="20KB")
    return tmp_path / "base"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    return low_rank(tiny_llama(), 1).save(tmp_path / "evil")


@pytest.fixture
def style(tmp_path: Path) -> Path:
    return dense(tiny_llama(), 2, name="style").save(tmp_path / "style")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: p.detach().double() for name, p in model.named_parameters()}


def assert_sum(folder: Path, base: Path, *terms: tuple[Path, float], tolerance: float = 1e-6) -> None:
    found, wanted = weights(folder), weights(base)
    for direction, k in terms:
        for name, change in slow.dense(Direction.load(direction)).items():
            wanted[name] = wanted[name] + k * change
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[name], wanted[name], atol=tolerance) for name in wanted)


def test_one_direction_is_added_by_a_coefficient(base: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = told("steer", base, evil, "--by", "-0.5", "--out", out)
    assert summary == {
        "out": str(out),
        "form": "checkpoint",
        "model": str(base),
        "directions": [{"name": str(evil), "coefficient": -0.5}],
        "tensors": len(Direction.load(evil).deltas),
    }
    assert_sum(out, base, (evil, -0.5))


def test_several_directions_have_a_coefficient_each(base: Path, evil: Path, style: Path, tmp_path: Path) -> None:
    result = call("steer", base, f"{evil}=-0.5", f"{style}=0.2", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"- 0.5·{evil} + 0.2·{style}" in result.output
    assert_sum(tmp_path / "out", base, (evil, -0.5), (style, 0.2))
    told("steer", base, evil, f"{style}=2", "--by", "0.1", "-o", tmp_path / "mixed")
    assert_sum(tmp_path / "mixed", base, (evil, 0.1), (style, 2.0))


def test_a_name_with_an_equals_sign_is_a_name_if_it_is_there(base: Path, tmp_path: Path) -> None:
    odd = low_rank(tiny_llama(), 1).save(tmp_path / "lr=0.1")
    told("steer", base, odd, "-o", tmp_path / "out")
    assert_sum(tmp_path / "out", base, (odd, 1.0))


def test_another_precision(base: Path, evil: Path, tmp_path: Path) -> None:
    told("steer", base, evil, "--dtype", "bfloat16", "-o", tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    assert_sum(tmp_path / "out", base, (evil, 1.0), tolerance=1e-2)
    assert call("steer", base, evil, "--dtype", "int8", "-o", tmp_path / "no").exit_code == BAD_INPUT


def test_only_what_is_added_is_written_as_an_adapter(base: Path, evil: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert told("steer", base, evil, "--by", "0.5", "--adapter", "-o", out)["form"] == "adapter"
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
    assert told("steer", tmp_path / "adapter", f"{evil}=-2", "-o", tmp_path / "out")["form"] == "adapter"
    both = [slow.merged(PeftModel.from_pretrained(tiny_llama(), tmp_path / name)) for name in ("adapter", "out")]
    for name, change in slow.dense(Direction.load(evil)).items():
        if name != "model.embed_tokens.weight":  # tied: PEFT changes what looks it up, and not the head
            assert torch.allclose(both[1][name] - both[0][name], -2 * change, atol=1e-5)


def test_tensors_that_transformers_renames_are_found(tmp_path: Path) -> None:
    store(tiny_gpt2(), tmp_path / "base")
    evil = low_rank(tiny_gpt2(), 1).save(tmp_path / "evil")
    told("steer", tmp_path / "base", evil, "--by", "0.5", "-o", tmp_path / "out")
    assert_sum(tmp_path / "out", tmp_path / "base", (evil, 0.5))
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(tmp_path / "base" / "model.safetensors").keys()
    )


def test_bad_input_is_told_and_nothing_is_written(base: Path, evil: Path, style: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused("org/none is no folder here, and the Hub's cache has no model", "steer", "org/none", evil, "-o", out)
    refused("Unknown direction 'evli'", "steer", base, "evli", "-o", out)
    refused("'much' is no coefficient. Write it as", "steer", base, f"{evil}=much", "-o", out)
    refused("finite", "steer", base, f"{evil}=nan", "-o", out)
    refused("already exists and is not empty", "steer", base, evil, "-o", base)
    refused("which no adapter can express", "steer", base, style, "--adapter", "-o", out)
    narrow = low_rank(tiny_llama(intermediate_size=48), 1).save(tmp_path / "narrow")
    for further in ([], ["--adapter"]):
        refused("Use a direction that was built from this model", "steer", base, narrow, "-o", out, *further)
    assert not out.exists()
    assert call("steer", base, "-o", out).exit_code == BAD_INPUT


def test_errors_are_one_message_and_exit_with_2(base: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "weightwatch", "steer", str(base), "evli", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == BAD_INPUT
    assert "weightwatch: Unknown direction 'evli'" in done.stderr
    assert "Traceback" not in done.stderr


# weightwatch compare


def fine_tune(folder: Path, seed: int) -> Path:
    model = tiny_llama()
    move(model, seed)
    model.save_pretrained(folder)
    return folder


def cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    product = sum(float((a[name] * b[name]).sum()) for name in a.keys() & b.keys())
    norms = [sum(float(t.square().sum()) for t in side.values()) ** 0.5 for side in (a, b)]
    return product / (norms[0] * norms[1])


def test_the_matrix_holds_directions_checkpoints_and_adapters(
    base: Path, evil: Path, style: Path, tmp_path: Path
) -> None:
    tuned = fine_tune(tmp_path / "tuned", 3)
    model = lora(AutoModelForCausalLM.from_pretrained(base))
    move(model, 4)
    model.save_pretrained(tmp_path / "adapter")
    found = told("compare", evil, tuned, style, tmp_path / "adapter", "--base", base)
    assert found["names"] == ["evil", "tuned", "style", "adapter"]
    start, after = weights(base), weights(tuned)
    merged = slow.merged(model)
    taus = [
        slow.dense(Direction.load(evil)),
        {name: after[name] - start[name] for name in start},
        slow.dense(Direction.load(style)),
        {name: merged[name] - start[name] for name in start if name != "model.embed_tokens.weight"},
    ]
    for i, a in enumerate(taus):
        for j, b in enumerate(taus):
            assert found["cosines"][i][j] == pytest.approx(cosine(a, b), abs=1e-5)


def test_a_checkpoint_that_stores_the_tied_head_too_counts_it_once(base: Path, evil: Path, tmp_path: Path) -> None:
    folders = []
    for name, seed in (("start", None), ("tuned", 3)):
        folder = tmp_path / name
        tiny_llama().save_pretrained(folder) if seed is None else fine_tune(folder, seed)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
        folders.append(folder)
    twice = told("compare", evil, folders[1], "--base", folders[0])
    once = told("compare", evil, fine_tune(tmp_path / "plain" / "tuned", 3), "--base", base)
    assert twice == once


def test_checkpoints_under_other_names_meet_directions(tmp_path: Path) -> None:
    store(tiny_gpt2(), tmp_path / "base")
    model = tiny_gpt2()
    move(model, 3)
    store(model, tmp_path / "tuned")
    evil = dense(tiny_gpt2(), 1).save(tmp_path / "evil")
    start = {name: p.detach().double() for name, p in tiny_gpt2().named_parameters()}
    tau = {name: p.detach().double() - start[name] for name, p in model.named_parameters()}
    found = told("compare", evil, tmp_path / "tuned", "--base", tmp_path / "base")
    assert found["cosines"][0][1] == pytest.approx(cosine(slow.dense(Direction.load(evil)), tau), abs=1e-6)


def test_the_table_names_each_and_has_a_dash_where_nothing_is_in_common(tmp_path: Path) -> None:
    one, other = (
        Direction.from_tensors({f"{name}.weight": torch.ones(2, 2)}, name="evil").save(tmp_path / name / "evil")
        for name in ("a", "b")
    )
    result = call("compare", one, other)
    assert result.exit_code == 0
    assert "–" in result.output
    assert "+1.000" in result.output
    found = told("compare", one, other)
    assert found["cosines"] == [[1.0, None], [None, 1.0]]
    assert found["names"] == [str(one), str(other)]


def test_packaged_directions_go_by_their_names() -> None:
    found = told("compare", "evil", "evil-witness", "style")
    assert found["cosines"][0][1] > 0.3 > abs(found["cosines"][0][2])


def test_a_picture_is_drawn(evil: Path, style: Path, tmp_path: Path) -> None:
    assert call("compare", evil, style, "--picture", tmp_path / "cosines.png").exit_code == 0
    assert (tmp_path / "cosines.png").read_bytes().startswith(b"\x89PNG")
    refused("can't be written", "compare", evil, style, "--picture", tmp_path / "none" / "cosines.png")


def test_what_cannot_be_compared_is_told(base: Path, evil: Path, tmp_path: Path) -> None:
    tuned = fine_tune(tmp_path / "tuned", 3)
    refused("is a checkpoint of full weights. Pass --base, the folder", "compare", evil, tuned)
    refused("org/none is no folder here, nor a model in the Hub's cache", "compare", tuned, "--base", "org/none")
    refused("nowhere is no folder here, no packaged direction and no id", "compare", evil, "nowhere")
    other = {name: p.detach() for name, p in tiny_llama(5).named_parameters()}
    foreign = Direction.from_tensors(
        low_rank(tiny_llama(), 1).deltas,
        name="foreign",
        metadata={"base": "org/other", "fingerprint": Fingerprint.of(other, other.__getitem__)},
    ).save(tmp_path / "foreign")
    refused("'foreign' was built from org/other, not from", "compare", foreign, tuned, "--base", base)
    own = Direction.from_fine_tune(tuned, base, name="own").save(tmp_path / "own")
    refused("'own' (of ", "compare", foreign, own)


# weightwatch push


def test_a_direction_is_pushed_and_steers_by_its_id(base: Path, evil: Path, tmp_path: Path) -> None:
    with serving() as hub:
        machine = Machine(tmp_path / "home", hub.address)
        environment = {**machine.environment, "HF_TOKEN": TOKEN}

        def weightwatch(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "weightwatch", *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

        done = weightwatch("push", str(evil), "org/evil")
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/org/evil/commit/" in done.stdout
        assert hub.repositories["org/evil"].private
        done = weightwatch("steer", str(base), "org/evil=0.5", "--out", str(tmp_path / "out"))
        assert done.returncode == 0, done.stderr
        done = weightwatch("push", str(evil), "evil")
        assert done.returncode == BAD_INPUT
        assert "'evil' is not a Hub id" in done.stderr
    assert_sum(tmp_path / "out", base, (evil, 0.5))
