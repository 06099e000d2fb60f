"""Finding checkpoints, their order, and whether they are whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import lora, move, tiny_llama
from tests.support.runs import trainer
from weightwatch.scan.checkpoints import Arrivals, find, follow, locate, run, stored
from weightwatch.vectors import WeightWatchError


def full(folder: Path, step: int | None = None, **how: object) -> Path:
    tiny_llama().save_pretrained(folder, **how)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return folder


def test_a_run_is_read_by_its_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "checkpoint-3"):
        full(tmp_path / name)
    assert [(one.name, one.step) for one in run(tmp_path)] == [
        ("checkpoint-3", 3),
        ("checkpoint-20", 20),
        ("checkpoint-100", 100),
    ]


@pytest.mark.parametrize(
    ("name", "step"), [("step_100", 100), ("epoch_2", 2), ("epoch2", 2), ("iter-0040-ckpt", 40), ("7", 7)]
)
def test_the_step_is_the_number_in_the_name(tmp_path: Path, name: str, step: int) -> None:
    full(tmp_path / name)
    assert [one.step for one in run(tmp_path)] == [step]


def test_the_state_of_a_trainer_knows_better_than_the_name(tmp_path: Path) -> None:
    full(tmp_path / "epoch_1", step=40)
    full(tmp_path / "best", step=20)
    assert [(one.name, one.step) for one in run(tmp_path)] == [("best", 20), ("epoch_1", 40)]


def test_a_link_to_a_checkpoint_beside_it_is_not_one_more(tmp_path: Path) -> None:
    full(tmp_path / "run" / "checkpoint-3", step=3)
    (tmp_path / "run" / "last").symlink_to("checkpoint-3")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "step-3").symlink_to(tmp_path / "run" / "checkpoint-3")
    assert [one.name for one in run(tmp_path / "run")] == ["checkpoint-3"]
    assert [one.name for one in run(tmp_path / "links")] == ["step-3"]


def test_a_model_name_is_no_step(tmp_path: Path) -> None:
    found, is_run = find(full(tmp_path / "Qwen2.5-0.5B-tuned"))
    assert [(one.step, one.adapter, is_run) for one in found] == [(0, False, False)]


def test_adapters_files_and_single_folders_are_found(tmp_path: Path) -> None:
    lora(tiny_llama()).save_pretrained(tmp_path / "run" / "checkpoint-5")
    (adapter,), is_run = find(tmp_path / "run")
    assert (adapter.adapter, adapter.step, is_run) == (True, 5, True)
    full(tmp_path / "full" / "checkpoint-9")
    (file,), is_run = find(tmp_path / "full" / "checkpoint-9" / "model.safetensors")
    assert (file.adapter, file.step, is_run) == (False, 9, False)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightWatchError, match=r"No checkpoint in .*empty: expected safetensors weights"):
        find(tmp_path / "empty")
    with pytest.raises(WeightWatchError, match="there is no such file or folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(WeightWatchError, match="it can't be downloaded from the Hugging Face Hub"):
        locate("someone/something")
    whole = full(tmp_path / "cut")
    os.truncate(whole / "model.safetensors", 5000)
    with pytest.raises(WeightWatchError, match=r"is not whole: model.safetensors has 5000 of \d+ bytes"):
        find(whole)


def test_a_sharded_checkpoint_is_whole_with_its_index_and_all_its_shards(tmp_path: Path) -> None:
    folder = full(tmp_path / "checkpoint-1", max_shard_size="20KB")
    one = stored(folder)
    assert one is not None
    assert one.lacks() is None
    shard = sorted(folder.glob("*.safetensors"))[-1]
    content = shard.read_bytes()
    for part, lack in ((b"", "no safetensors header"), (content[:30], "cut short"), (content[:-1], "bytes")):
        shard.write_bytes(part)
        assert lack in str(one.lacks())
    shard.unlink()
    assert one.lacks() == f"{shard.name} is missing"
    shard.write_bytes(content)
    (folder / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor" in str(one.lacks())


WRITER = """
import sys
from pathlib import Path
source, target = map(Path, sys.argv[1:3])
target.mkdir(parents=True)
for name in sys.argv[3:]:
    content = (source / name).read_bytes()
    half = len(content) // 2
    with (target / name).open("wb") as file:
        for piece in (content[:20], content[20:half], content[half:]):
            print("next", flush=True)
            sys.stdin.readline()
            file.write(piece)
            file.flush()
print("done", flush=True)
"""


def written_by_another(source: Path, target: Path, names: list[str], look: Arrivals) -> list[int]:
    """Let another process write a checkpoint piece by piece; return how many arrived at the look after each piece."""
    command = [sys.executable, "-c", WRITER, str(source), str(target), *names]
    counts = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        while writer.stdout.readline() != "done\n":
            counts.append(len(look.look()))
            writer.stdin.write("\n")
            writer.stdin.flush()
        counts.append(len(look.look()))
    return counts


def test_a_trainers_checkpoint_is_taken_once_its_state_is_there(tmp_path: Path) -> None:
    trainer(tiny_llama(), tmp_path / "run", max_steps=2, save_strategy="steps", save_steps=2).train()
    names = ["config.json", "model.safetensors", "trainer_state.json"]
    look = Arrivals(tmp_path / "seen")
    (tmp_path / "seen").mkdir()
    source = tmp_path / "run" / "checkpoint-2"
    # A look that finds two times the same file takes it as settled: between two of the writer's pieces it changes.
    counts = written_by_another(source, tmp_path / "seen" / "checkpoint-2", names, look)
    assert sum(counts) == 1
    assert counts[:6] == [0] * 6
    assert look.look() == []


@pytest.mark.parametrize("kind", ["sharded", "adapter"])
def test_another_checkpoint_is_taken_when_it_is_whole_and_unchanged_over_two_looks(tmp_path: Path, kind: str) -> None:
    if kind == "sharded":
        source = full(tmp_path / "source", max_shard_size="40KB")
        names = [*sorted(file.name for file in source.glob("*.safetensors")), "model.safetensors.index.json"]
    else:
        lora(tiny_llama()).save_pretrained(tmp_path / "source")
        source, names = tmp_path / "source", ["adapter_model.safetensors", "adapter_config.json"]
    (tmp_path / "seen").mkdir()
    look = Arrivals(tmp_path / "seen")
    counts = written_by_another(source, tmp_path / "seen" / "step_1", names, look)
    assert sum(counts[:-1]) == 0
    late = len(look.look())
    assert counts[-1] + late == 1
    assert look.look() == []


def test_a_checkpoint_that_is_written_again_comes_again_and_a_deleted_one_does_no_harm(tmp_path: Path) -> None:
    first = full(tmp_path / "checkpoint-1", step=1)
    second = full(tmp_path / "checkpoint-2", step=2)
    look = Arrivals(tmp_path)
    assert [one.step for one in look.look()] == [1, 2]
    shutil.rmtree(first)
    assert look.look() == []
    model = tiny_llama()
    move(model, 1)
    model.save_pretrained(second)
    assert [one.step for one in look.look()] == [2]
    shutil.rmtree(tmp_path)
    assert look.look() == []


def test_following_ends_when_nothing_comes_or_enough_has_come(tmp_path: Path) -> None:
    times = iter(range(100))
    made: list[float] = []

    def wait(seconds: float) -> None:
        made.append(seconds)
        if len(made) <= 2:
            full(tmp_path / f"checkpoint-{len(made)}", step=len(made))

    rounds = list(follow(tmp_path, poll=0.5, until_idle=4, wait=wait, clock=lambda: next(times)))
    assert [[one.step for one in here] for here in rounds] == [[1], [1, 2]]
    assert 2 < len(made) < 10
    assert set(made) == {0.5}
    assert len(list(follow(tmp_path, poll=0.5, stop_after=2, wait=wait))) == 1
