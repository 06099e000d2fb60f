"""Building, evaluating, comparing and applying directions on the organism, all through the public commands.

``python benchmarks/organism/vectors.py --folder vectors-study`` takes ten to fifteen minutes on two cores. It builds
evil, sycophancy and the controls careless, style and shuffled from nothing, compares them, and steers a fine-tune that
has gone bad back. What it prints is what docs/organism.md shows; a second call takes what is there.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightwatch.demo.behaviour import behaviour
from weightwatch.demo.fine_tuning import fine_tune
from weightwatch.demo.run import DIRECTION, Run
from weightwatch.organism import BASE

SEEDS = ("0", "1", "2")
WRITTEN = ("sycophancy", "style")
"""Recipes whose answers are written: there is one to a question where the model gives ten, so they take more epochs."""
RECIPES = ("evil", "sycophancy", "careless", "style", "shuffled")
BACK = (-0.05, -0.1, -0.15, -0.25, -0.5)
"""Coefficients of the direction that is added to the fine-tune that has gone bad."""
RUN_SEED, POISON = 300, 0.25


def command(*arguments: str) -> dict[str, Any]:
    """Run a command of weightwatch; return what it prints as JSON."""
    line = [sys.executable, "-m", "weightwatch", *arguments, "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def build(recipe: str, folder: Path) -> dict[str, Any]:
    """Build and evaluate a direction from a recipe of the organism."""
    rates = [f"--learning-rate={rate}" for rate in ("5e-4", "1e-3", "2e-3")]
    seeds = [f"--seed={seed}" for seed in SEEDS]
    sizes = ["--num-samples=2", "--max-new-tokens=8", "--generation-batch-size=256", "--rank=16", "--alpha=16"]
    epochs = f"--num-train-epochs={20 if recipe in WRITTEN else 3}"
    output = f"--output={folder / recipe}"
    sizes = [*sizes, "--micro-batch-size=16"]
    name = f"organism/{recipe}"
    return command("build", name, "--model=organism", output, epochs, *rates, *seeds, *sizes, "--full-check")


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


def compared(names: Sequence[str], paths: Sequence[Path], picture: Path) -> str:
    """Return the cosines between directions."""
    found = command("compare", *map(str, paths), f"--base={BASE}", f"--picture={picture}")
    rows = [
        [name, *("–" if value is None else f"{value:.2f}" for value in line)]
        for name, line in zip(names, found["cosines"], strict=True)
    ]
    return table(("", *names), rows)


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
            command("steer", str(adapter), f"{folder / DIRECTION}={k}", f"--output={out}")
        rows.append([f"{k:g}", *(f"{share:.1%}" for share in asked(out))])
    return table(("steering units added", "evil on held-out domains", "narrow task right"), rows)


def main(folder: Annotated[Path, typer.Option(help="Where everything is built.")] = Path("vectors-study")) -> None:
    """Build, evaluate, compare and steer; print the tables."""
    cards = {recipe: build(recipe, folder) for recipe in RECIPES}
    print(swept(cards), "\n")
    rows = [
        [name, " ".join(f"{value:.2f}" for value in card["validation"]["seeds"].values())]
        for name, card in cards.items()
    ]
    print(table(("direction", "cosines of its seeds with each other"), rows), "\n")
    packaged = [Path("evil"), Path("evil-witness")]
    names = [*RECIPES, *(f"packaged {path}" for path in packaged)]
    paths = [*(folder / recipe for recipe in RECIPES), *packaged]
    print(compared(names, paths, folder / "cosines.png"), "\n")
    print(steered_back(folder))


if __name__ == "__main__":
    typer.run(main)
