"""A check and a scan of this tree, relative to another checkout of the repository: ``benchmarks.against FOLDER``.

The check is of a Llama of 110M parameters, with LoRA and trained in full, its θ₀ in memory or in a checkpoint. The scan
is of a bf16 checkpoint of 250M parameters: one that is too small for a compiled loop, and the same one with it. Each
tree measures in a process of its own, and the calls alternate. Figures are medians, with the middle half of the rounds
in brackets.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import alternate, described, ratios

HERE = Path(__file__).parent.parent
SERVER = Path(__file__).with_name("check_server.py")
CASES = [*((kind, count) for kind in ("LoRA", "full", "full-file") for count in (1, 4)), ("scan", 1), ("scan-on", 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Root of the other checkout.")
    parser.add_argument("--only", nargs="*", default=sorted({kind for kind, _ in CASES}), help="Kinds to time.")
    parser.add_argument("--threads", type=int, default=2, help="Number of threads of each process. Default: 2.")
    parser.add_argument("--rounds", type=int, default=30, help="Number of timed rounds. Default: 30.")
    given = parser.parse_args()
    print(described(given.threads))
    for kind, count in (case for case in CASES if case[0] in given.only):
        trees = {
            "other": Tree(given.folder, kind, count, given.threads),
            "this": Tree(HERE, kind, count, given.threads),
        }
        taken = alternate({name: tree.check for name, tree in trees.items()}, given.rounds)
        milliseconds = {name: _middle([1000 * value for value in values], "{:.1f}") for name, values in taken.items()}
        print(
            f"{kind}, directions: {count}, other: {milliseconds['other']} ms, this: {milliseconds['this']} ms, "
            f"this / other: {_middle(ratios(taken['this'], taken['other']), '{:.2f}')}",
            flush=True,
        )
        for tree in trees.values():
            tree.stop()


class Tree:
    """A process that measures with the package of one checkout."""

    def __init__(self, root: Path, kind: str, count: int, threads: int) -> None:
        root = root.resolve()
        self._process = subprocess.Popen(
            [sys.executable, "-P", SERVER, kind, str(count), str(threads)],
            # A thread that has nothing to do must sleep: the other process measures then.
            env={**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        package = self._answer()
        if not Path(package).is_relative_to(root):
            raise SystemExit(f"{root} has no package weightwatch: {package} was imported.")

    def check(self) -> None:
        """Measure once."""
        assert self._process.stdin is not None
        self._process.stdin.write("check\n")
        self._process.stdin.flush()
        self._answer()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if not answer:
            raise SystemExit("A process of the benchmark has ended; its error stands above.")
        return answer


def _middle(values: Sequence[float], form: str) -> str:
    low, median, high = (form.format(value) for value in statistics.quantiles(values, n=4))
    return f"{median} ({low} to {high})"


if __name__ == "__main__":
    main()
