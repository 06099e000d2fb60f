"""Runs of checkpoints on disk, and their scans."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.support.models import dense, move, tiny_llama
from tests.support.runs import lines
from weightwatch.reading.reading import Reading
from weightwatch.scan.checkpoints import find
from weightwatch.scan.scanner import Scan
from weightwatch.vectors import Direction
from weightwatch.vectors.fingerprint import Fingerprint


def save(direction: Direction, folder: Path, base: torch.nn.Module | None = None) -> str:
    """Store a direction, with the fingerprint of a base if one is given."""
    if base is not None:
        weights = dict(base.named_parameters())
        mark = Fingerprint.of(direction.deltas, weights.__getitem__)
        direction.card = direction.card.model_copy(update={"fingerprint": mark, "base": "the tiny one"})
    return str(direction.save(folder))


def scan(what: Path, direction: str, **settings: Any) -> Scan:
    done = Scan([direction], **settings)
    for one in find(what)[0]:
        done.add(one)
    return done


def same(ours: Reading, live: Reading) -> None:
    """Compare all figures of two readings."""
    close = {"rel": 1e-6, "abs": 1e-7}
    assert (ours.step, ours.checkpoint) == (live.step, live.checkpoint)
    assert ours.update_norm == pytest.approx(live.update_norm, **close)
    assert set(ours.directions) == set(live.directions)
    for name, found in ours.directions.items():
        want = live[name]
        parts = [(found, want)]
        parts += [(found.layers[i], want.layers[i]) for i in want.layers]
        parts += [(found.modules[kind], want.modules[kind]) for kind in want.modules]
        for one, other in parts:
            for figure in ("cosine", "reach_cosine", "dose", "reach", "share"):
                assert getattr(one, figure) == pytest.approx(getattr(other, figure), **close), figure
            assert one.z == (None if other.z is None else pytest.approx(other.z, **close))


def live_readings(folder: Path) -> list[Reading]:
    return [Reading.from_json(json.dumps(line)) for line in lines(folder) if line["checkpoint"]]


def base_folder(tmp_path: Path, **settings: object) -> tuple[LlamaForCausalLM, Path]:
    base = tiny_llama(**settings)
    base.save_pretrained(tmp_path / "base")
    return LlamaForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "base"


def full_run(tmp_path: Path, count: int = 3) -> tuple[Path, Path, str]:
    """Return a run of full checkpoints that move further and further, its base and a direction."""
    base, reference = base_folder(tmp_path)
    for step in range(1, count + 1):
        move(base, step)
        base.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run", reference, save(dense(base, 1), tmp_path / "evil")


def figures(done: Scan) -> list[dict[str, Any]]:
    return [{**reading.to_json(), "time": "", "checkpoint": ""} for reading in done.readings]


def changed(folder: Path, change: Any) -> None:
    """Change the tensors of a checkpoint's file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
