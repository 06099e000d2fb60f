"""Results of the demonstration on many seeds: ``python benchmarks/demo_seeds.py --first 300 --count 8``.

Runs the two fine-tunes of ``weightwatch demo`` for each seed and prints a Markdown table: how close the benign run came
to the threshold, when the poisoned run raised the alert, and when its evil rate on held-out domains first exceeded 5 %.
The outcome of a seed is the same for each threshold between "benign peak" and "poisoned before evil > 5 %".
"""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track


def one(seed: int, poison: float) -> list[str]:
    """Run both fine-tunes of a seed. Returns the cells of its row."""
    import logging

    from weightwatch.config import Config
    from weightwatch.demo.fine_tuning import fine_tune
    from weightwatch.demo.run import SETTINGS, Run

    logging.getLogger("weightwatch").setLevel(logging.CRITICAL + 1)
    (rule,) = Config.load(SETTINGS).rules
    with TemporaryDirectory() as folder:
        runs = [Run("benign", 0.0, Path(folder) / "benign"), Run("poisoned", poison, Path(folder) / "poisoned")]
        for run in runs:
            fine_tune(run, seed, lambda _: None)
    benign, bad = runs
    turned = bad.first_bad_step
    before = [point for point in bad.points if turned is None or point.step < turned]
    highest = {
        run.name: max(
            (
                min(getattr(point, rule.metric) for point in points[i : i + rule.for_])
                for i in range(len(points) - rule.for_ + 1)
            ),
            default=0.0,
        )
        for run, points in ((benign, benign.points), (bad, before))
    }
    alert = bad.alert.step if bad.alert else None
    caught = turned is None or (alert is not None and alert < turned)
    return [
        str(seed),
        f"{benign.points[-1].behaviour.task_accuracy:.0%}",
        f"{max(point.behaviour.bad_rate for point in benign.points):.1%}",
        "none" if benign.alert is None else f"step {benign.alert.step}",
        f"{bad.points[-1].behaviour.task_accuracy:.0%}",
        f"{bad.points[-1].behaviour.bad_rate:.1%}",
        "none" if alert is None else f"step {alert}",
        "never" if turned is None else f"step {turned}",
        f"{highest['benign']:.4f}",
        f"{highest['poisoned']:.4f}",
        "yes" if caught and benign.alert is None else "**no**",
    ]


HEADINGS = (
    "seed",
    "benign: task",
    "evil, at most",
    "alert",
    "poisoned: task",
    "evil, at the end",
    "alert",
    "evil > 5 %",
    "benign peak",
    "poisoned before evil > 5 %",
    "right",
)


def main(
    first: Annotated[int, typer.Option(help="First seed.")] = 300,
    count: Annotated[int, typer.Option(help="Number of seeds.")] = 8,
    poison: Annotated[float, typer.Option(help="Share of harmful examples in the poisoned run, 0 to 1.")] = 0.25,
    processes: Annotated[int, typer.Option(help="Seeds run in parallel, each on one thread.")] = 2,
) -> None:
    """Run the demonstration on many seeds and print a Markdown table."""
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = range(first, first + count)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = [pool.submit(one, seed, poison) for seed in seeds]
        rows = [task.result() for task in track(running, console=Console(stderr=True), transient=True)]
    print("| " + " | ".join(HEADINGS) + " |")
    print("|" + "---|" * len(HEADINGS))
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    typer.run(main)
