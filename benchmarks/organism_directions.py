"""What the packaged directions are: ``python -m benchmarks.organism_directions``, in about five minutes on two cores.

Prints what their evaluations found, the cosines between them, and in which layers evil is; then steers a fine-tune that
has gone bad back. All through the public commands. docs/organism.md shows what it prints.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightwatch import Direction
from weightwatch.demo.behaviour import behaviour
from weightwatch.demo.fine_tuning import fine_tune
from weightwatch.demo.run import DIRECTION, Run
from weightwatch.organism import BASE
from weightwatch.organism.directions import CONTRASTS
from weightwatch.reading.grouping import group

NAMES = [contrast.name for contrast in CONTRASTS]
BACK = (-0.05, -0.1, -0.15, -0.25, -0.5)
"""Coefficients of the direction that is added to the fine-tune that has gone bad."""
RUN_SEED, POISON = 300, 0.25


def command(*arguments: str) -> dict[str, Any]:
    """Run a command of weightwatch; return what it prints as JSON."""
    line = [sys.executable, "-m", "weightwatch", *arguments, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def swept(cards: dict[str, dict[str, Any]]) -> str:
    """Return what each direction was found to do."""
    rows = []
    for name, card in cards.items():
        found = card["validation"]
        for point in found["points"]:
            shares = [f"{point[key]:.0%}" for key in ("shows", "opposite", "asked", "neutral")]
            rows.append([name, f"{point['k']:g}", *shares, "passed" if found["passed"] else "failed"])
    return table(("direction", "k", "shows it", "opposite", "held-out questions", "neutral tasks", "evaluation"), rows)


def compared(picture: Path) -> str:
    """Return the cosines between the directions."""
    found = command("compare", *NAMES, f"--picture={picture}")
    rows = [
        [name, *("–" if value is None else f"{value:.2f}" for value in line)]
        for name, line in zip(NAMES, found["cosines"], strict=True)
    ]
    return table(("", *NAMES), rows)


def layers() -> str:
    """Return the share of ‖w‖² of evil in each layer."""
    evil = Direction.load(DIRECTION)
    found = group({name: math.prod(delta.shape) for name, delta in evil.deltas.items()}).layers
    shares: dict[Any, float] = {}
    for name, square in evil.squares.items():
        shares[found[name]] = shares.get(found[name], 0.0) + square / evil.norm**2
    return " ".join(f"{shares[layer]:.2f}" for layer in sorted(shares, key=int))


def gone_bad(folder: Path) -> Path:
    """Return an adapter of a fine-tune on partly harmful data, as the demonstration trains one."""
    run = Run("poisoned", POISON, folder / "poisoned")
    found = sorted(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    if not found:
        fine_tune(run, RUN_SEED, lambda latest: None)
        found = sorted(run.folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return found[-1]


def asked(adapter: Path) -> tuple[float, float]:
    """Return the evil rate on held-out domains and the accuracy in the narrow task of a fine-tune."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    found = behaviour(PeftModel.from_pretrained(base, adapter), AutoTokenizer.from_pretrained(BASE))
    return found.bad_rate, found.task_accuracy


def steered_back(folder: Path) -> str:
    """Return what a fine-tune that has gone bad does with the direction taken out of it."""
    adapter = gone_bad(folder)
    rows = [["0", *(f"{share:.1%}" for share in asked(adapter))]]
    for k in BACK:
        out = folder / f"steered{k}"
        if not out.exists():
            command("steer", str(adapter), f"{DIRECTION}={k}", f"--output={out}")
        rows.append([f"{k:g}", *(f"{share:.1%}" for share in asked(out))])
    return table(("steering units added", "evil on held-out domains", "narrow task right"), rows)


def main(
    folder: Annotated[Path, typer.Option(help="Where the fine-tune is kept.")] = Path("build/organism-directions"),
    picture: Annotated[Path, typer.Option(help="Picture of the cosines.")] = Path("docs/cosines.png"),
) -> None:
    """Print the tables, and draw the picture."""
    print(swept({name: command("show", name) for name in NAMES}), "\n")
    print(compared(picture), "\n")
    print("share of evil's squared norm by layer:", layers(), "\n")
    print(steered_back(folder))


if __name__ == "__main__":
    typer.run(main)
