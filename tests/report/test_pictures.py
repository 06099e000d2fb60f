"""The pictures of a direction are written, and an outdated one is removed."""

from pathlib import Path

import torch
from PIL import Image

from weightwatch.report.pictures import draw
from weightwatch.vectors import Direction


def test_an_evaluated_direction_has_both_pictures_and_another_loses_the_sweep(tmp_path: Path) -> None:
    draw(Direction.load("evil"), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"layers.png", "sweep.png"}
    first = Image.open(tmp_path / "layers.png").convert("RGB").tobytes()
    assert len(set(Image.open(tmp_path / "sweep.png").convert("RGB").getdata())) > 3  # lines of three colours
    mine = {f"model.layers.{i}.mlp.up_proj.weight": torch.full((2, 2), float(i)) for i in range(1, 4)}
    draw(Direction.from_tensors(mine, name="mine"), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"layers.png"}
    assert Image.open(tmp_path / "layers.png").convert("RGB").tobytes() != first
