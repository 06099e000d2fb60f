"""Reading speed of a scan, compared with only reading the same files. All files are in the page cache."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.directions import drawn
from benchmarks.machine import alternate, ratios, spread
from weightwatch.scan.checkpoints import checkpoint_at
from weightwatch.scan.scanner import Scan
from weightwatch.vectors import Direction

LAYER = (4096, 2048)
LAYERS = 60  # 1 GB in bf16
HEADINGS = ("what", "GB/s", "of reading alone, %")


def rows(rounds: int, folder: Path) -> list[list[str]]:
    """Scan a bf16 checkpoint against its base model and a dense direction. Returns the rows under ``HEADINGS``."""
    for seed, name in enumerate(("base", "model", "evil")):
        generator = torch.Generator().manual_seed(seed)
        names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(LAYERS)]
        tensors = {name: drawn(LAYER, torch.bfloat16, generator) for name in names}
        (folder / name).mkdir()
        if name == "evil":
            Direction.from_tensors(tensors, name=name).save(folder / name)
        else:
            save_file(tensors, folder / name / "model.safetensors")
        del tensors
    files = [path for name in ("base", "model", "evil") for path in (folder / name).glob("*.safetensors")]
    scans: list[Scan] = []

    def scan() -> None:
        scans.append(Scan([str(folder / "evil")], reference=str(folder / "base")))
        checkpoint = checkpoint_at(folder / "model")
        if checkpoint is not None:
            scans[-1].add(checkpoint)

    acts: dict[str, Callable[[], object]] = {"reading alone": lambda: read_all(files), "scan": scan}
    taken = alternate(acts, rounds)
    volume = sum(path.stat().st_size for path in files)
    # The scan's own time excludes loading the direction, which reads its tensors once to verify their norms.
    own = [each.seconds for each in scans[1:]]
    shares = [100 * share for share in ratios(taken["reading alone"], own)]
    return [
        ["reading alone", spread([volume / value / 1e9 for value in taken["reading alone"]], "{:.1f}"), ""],
        ["scan", spread([volume / value / 1e9 for value in own], "{:.1f}"), spread(shares, "{:.0f}")],
    ]


def read_all(files: list[Path]) -> None:
    """Read files from start to end."""
    buffer = memoryview(bytearray(1 << 22))
    for path in files:
        with path.open("rb", buffering=0) as file:
            while read := os.preadv(file.fileno(), [buffer], file.tell()):
                file.seek(read, os.SEEK_CUR)
