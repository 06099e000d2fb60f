"""Run the benchmarks and print their tables: ``python -m benchmarks``."""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import full, growth, guard_step, lora, real_step, scan, step
from benchmarks.machine import described

Rows: TypeAlias = list[list[str]]
PARTS: dict[str, tuple[ModuleType, Callable[[int, Path], Rows]]] = {
    "lora": (lora, lambda rounds, folder: [lora.row(count, rounds) for count in (1, 4, 16)]),
    "full": (full, full.rows),
    "step": (step, step.rows),
    "real": (real_step, real_step.rows),
    "guard": (guard_step, guard_step.rows),
    "scan": (scan, scan.rows),
    "growth": (growth, lambda rounds, folder: growth.rows(rounds)),
}
INTRODUCTION = """# Benchmarks

Printed by `python -m benchmarks --write docs/benchmarks.md`. Figures are medians, with the range in brackets. Calls
that are compared alternate in one run, and each ratio is that of one round, so that the load of the machine affects
both sides alike. The naive way is to merge the adapter or take the state dict, subtract the base model's, flatten, and
call `torch.nn.functional.cosine_similarity`. Where it is slow, it is timed once. Peak MB is the peak increase of the
process's memory during a call.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"Benchmarks to run: {', '.join(PARTS)}. Default: all.")
    parser.add_argument("--threads", type=int, default=2, help="Number of threads. Default: 2.")
    parser.add_argument("--rounds", type=int, default=5, help="Number of timed rounds. Default: 5.")
    parser.add_argument("--write", type=Path, help="Markdown file to write the tables to.")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown benchmark: {', '.join(sorted(unknown))}. Choose from {', '.join(PARTS)}.")
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    machine = described(given.threads)
    print(machine)
    texts = [f"{INTRODUCTION}\nMachine: {machine}.\n"]
    for part in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            module, run = PARTS[part]
            headings, rows = module.HEADINGS, run(given.rounds, Path(folder))
        about = str(module.__doc__).strip()
        _print(part, headings, rows)
        lines = [headings, ["---"] * len(headings), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        texts.append(f"## {part}\n\n{about}\n\n{table}\n")
    if given.write is not None:
        given.write.write_text("\n".join(texts))


def _print(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
