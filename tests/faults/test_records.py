"""Damaged records of a run that is resumed: it goes on, or is refused before its first step; no line is lost."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damage import Damage, of_bytes, of_json, of_lines
from tests.faults.limits import within
from tests.faults.sample import sample
from tests.support.models import low_rank, move, tiny_llama
from tests.support.runs import timeless, trainer
from weightwatch import WeightWatchCallback, WeightWatchError

RULES = [{"alert": f"moved-{n}", "direction": "evil", "metric": "dose", "above": -1e6, "for": n} for n in (1, 2)]
CONFIG = {"every": 1, "rules": RULES, "summary": False, "tensorboard": False}
RECORDS = {
    "readings.jsonl": ("step", "time", "update_norm", "directions", "checkpoint", "left_out"),
    "states.jsonl": ("step", "checkpoint", "key", "states", "clean", "peaks"),
    "alerts.jsonl": ("step", "alert", "value", "since"),
    "reference.json": ("weights", "adapters"),
    "config.yaml": (),
}
"""The files that are damaged, with the keys of their documents."""


def damages(file: str, whole: bytes) -> Iterator[Damage]:
    if file.endswith(".jsonl"):
        yield from of_lines(whole, RECORDS[file])
    elif file.endswith(".json"):
        yield from of_json(whole, RECORDS[file])
    else:
        yield from of_bytes(whole)


def faults() -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield each damage to each file, by its name: the file is another in each run."""
    for file in RECORDS:
        line = json.dumps(dict.fromkeys(RECORDS[file], 1)).encode()
        like = line + b"\n" + line + b"\n" if file.endswith(".jsonl") else line
        for what, _ in damages(file, like):
            yield f"{file} {what}", (file, what)


def train(folder: Path, resume: Path | None = None) -> int:
    """Train a run, or go on with it from a checkpoint, and return the step that it reached."""
    model = tiny_llama()
    move(model, 4, 0.1)  # equals no checkpoint on disk, so θ₀ is copied
    callback = WeightWatchCallback([low_rank(tiny_llama(), 5)], config=CONFIG)
    run = trainer(model, folder, callback, max_steps=4, save_strategy="steps", save_steps=2)
    with within(30):
        run.train(resume_from_checkpoint=str(resume) if resume else None)
    return int(run.state.global_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record") / "run"
    assert train(folder) == 4
    return folder


def contents(folder: Path) -> bytes:
    """Return what all files of a record hold, as they are and as lines that were put aside quote them."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "checkpoint-" not in str(file)]
    quoted = [
        str(json.loads(line).get("line", "")).encode()
        for file in files
        if file.name == "superseded.jsonl"
        for line in file.read_bytes().splitlines()
    ]
    return b"\n".join([file.read_bytes() for file in files] + quoted)


@pytest.mark.parametrize(("file", "what"), sample(faults(), 10))
def test_a_damaged_record_loses_no_line_and_gives_no_wrong_reading(
    file: str, what: str, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    record = run / "weightwatch"
    damaged = dict(damages(file, (record / file).read_bytes()))[what]
    (record / file).write_bytes(damaged)
    before = {name: (record / name).read_bytes() for name in ("readings.jsonl", "alerts.jsonl")}

    try:
        assert train(run, run / "checkpoint-2") == 4
    except WeightWatchError as error:  # before the first step
        if str(record) not in str(error):
            raise

    kept = contents(run)
    for name, content in before.items():
        for line in content.splitlines():
            text = line.strip().decode(errors="replace")
            assert text.encode() in kept or line.strip() in kept, f"{name} lost {text[:200]}"
    right = {line["step"]: line for line in timeless(whole)}
    assert all(line == right[line["step"]] for line in after(run, 2))


def after(run: Path, step: int) -> Iterator[dict[str, Any]]:
    """Yield the readings after a step; a damaged one, which is before it, is passed over."""
    for text in (run / "weightwatch" / "readings.jsonl").read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int) and step < line["step"] < 10:
                yield {key: value for key, value in line.items() if key != "time"}
