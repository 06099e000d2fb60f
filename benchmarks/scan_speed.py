"""What a scan reads in a second, beside reading the files alone: ``python benchmarks/scan_speed.py [GB] [rounds]``.

Writes a checkpoint, its base and a dense direction of bf16 into a temporary folder, so that they lie in the page cache.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from weightwatch.checkpoints import stored
from weightwatch.scan import Scan
from weightwatch.vectors import Direction

LAYER = (4096, 2048)


def main() -> None:
    size, rounds = (float(sys.argv[1]) if len(sys.argv) > 1 else 1.0), int((sys.argv[2:] or ["5"])[0])
    count = max(1, round(size * 1e9 / 2 / (LAYER[0] * LAYER[1])))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, name in enumerate(("base", "model", "evil")):
            generator = torch.Generator().manual_seed(seed)
            tensors = {
                f"model.layers.{i}.mlp.up_proj.weight": torch.randn(LAYER, generator=generator).bfloat16()
                for i in range(count)
            }
            if name == "evil":
                Direction.from_tensors(tensors, name=name).save(folder / name)
                few = {key: tensor for key, tensor in tensors.items() if key.startswith("model.layers.0.")}
                Direction.from_tensors(few, name="one layer").save(folder / "few")
            else:
                (folder / name).mkdir()
                save_file(tensors, folder / name / "model.safetensors")
        del tensors
        files = [folder / "base" / "model.safetensors", folder / "model" / "model.safetensors"]
        show(f"reading {2 * size:.1f} GB alone, one thread", [read_all(files) for _ in range(rounds)])
        most = torch.get_num_threads()
        for threads in dict.fromkeys((1, most)):
            torch.set_num_threads(threads)
            for name, title in (("few", "‖τ‖ (a direction of one layer)"), ("evil", "a dense direction")):
                show(f"scan: {title}, {threads} threads", [scan(folder, name) for _ in range(rounds)])


def read_all(files: list[Path]) -> float:
    """Return GB/s of reading files from their beginning to their end."""
    buffer = memoryview(bytearray(1 << 22))
    done, began = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while read := os.preadv(file.fileno(), [buffer], file.tell()):
                file.seek(read, os.SEEK_CUR)
                done += read
    return done / (time.perf_counter() - began) / 1e9


def scan(folder: Path, direction: str) -> float:
    """Return GB/s of a scan."""
    done = Scan([str(folder / direction)], reference=str(folder / "base"))
    checkpoint = stored(folder / "model")
    assert checkpoint is not None
    done.add(checkpoint)
    return done.gb_per_s


def show(title: str, figures: list[float]) -> None:
    print(f"{title:55} median {statistics.median(figures):5.2f} GB/s  ({min(figures):.2f} to {max(figures):.2f})")


if __name__ == "__main__":
    main()
