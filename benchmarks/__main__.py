"""Print all benchmarks side by side: ``python -m benchmarks``; ``--write docs/benchmarks.md`` keeps them."""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import full, growth, lora, scan, step
from benchmarks.machine import described

PARTS = ("lora", "full", "step", "scan", "growth")
INTRODUCTION = """# Benchmarks

Printed by `python -m benchmarks --write docs/benchmarks.md`. Figures are medians, with the lowest and the highest in
brackets. What is compared is timed in turns in one run, and every ratio is formed round by round, so that the load of
the machine meets both sides. The naive way is what people do today: merge the adapter or take the state dict, subtract
that of the base, flatten, `torch.nn.functional.cosine_similarity`. Where it takes long, it is timed once. Peaks are
what a call adds to the memory that the process holds by then.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which to run: {', '.join(PARTS)}; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="a Markdown file for the tables")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    machine = described(given.threads)
    print(machine)
    texts = [f"{INTRODUCTION}\nMachine: {machine}.\n"]
    for part in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            module, make = _part(part, given.rounds, Path(folder))
            headings, rows = module.HEADINGS, make()
        about = str(module.__doc__).strip()
        _print(part, headings, rows)
        lines = [headings, ["---"] * len(headings), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        texts.append(f"## {part}\n\n{about}\n\n{table}\n")
    if given.write is not None:
        given.write.write_text("\n".join(texts))


def _part(part: str, rounds: int, folder: Path) -> tuple[Any, Callable[[], list[list[str]]]]:
    makers: dict[str, tuple[Any, Callable[[], list[list[str]]]]] = {
        "lora": (lora, lambda: [lora.row(count, rounds) for count in (1, 4, 16)]),
        "full": (full, lambda: full.rows([1, 4], rounds, folder)),
        "step": (step, lambda: step.rows(rounds, folder)),
        "scan": (scan, lambda: scan.rows(rounds, folder)),
        "growth": (growth, lambda: growth.rows(rounds)),
    }
    return makers[part]


def _print(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
