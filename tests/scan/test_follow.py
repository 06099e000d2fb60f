"""Following a run: each checkpoint once, when it is complete."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.models import lora, move, tiny_llama
from tests.support.runs import full, trainer
from weightwatch.scan.follow import Arrivals, follow

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
def test_another_checkpoint_is_taken_once_it_is_unchanged_over_two_looks(tmp_path: Path, kind: str) -> None:
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


def test_a_pickled_adapter_is_named_once_and_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoint-5"
    lora(tiny_llama()).save_pretrained(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    arrivals = Arrivals(tmp_path)
    assert [arrivals.look() for _ in range(3)] == [[], [], []]
    assert caplog.text.count("adapter_model.bin is pickled") == 1
