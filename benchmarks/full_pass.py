"""What one pass over a fully trained model costs: ``python benchmarks/full_pass.py``.

The tensors of a Llama are measured against K dense bf16 directions, compiled and in blocks, beside two yardsticks:
the fastest reading of memory that this machine gives (the best of three ways, over 1 GB), and the naive way
(differences and directions laid end to end in fp32, then ``F.cosine_similarity``). All of them alternate, so that they
meet the same load of the machine; shares and ratios are medians over rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from weightwatch.fused import compiled_calls, failure, pass_over

SIZES = {"120M": (12, 768, 2560), "500M": (22, 1280, 3456)}  # layers, width, width of the MLP
VOCABULARY = 32_000
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAIVE_ROUNDS = 3
Model = list[Tensor]


def shapes(layers: int, width: int, inner: int) -> list[int]:
    """Return the lengths of a Llama's tensors, its embedding counted once."""
    layer = [width * width] * 4 + [width * inner] * 3 + [width] * 2
    return [VOCABULARY * width, *layer * layers, width]


def drawn(lengths: Sequence[int], dtype: torch.dtype) -> Model:
    return [torch.empty(length).uniform_(-0.02, 0.02).to(dtype) for length in lengths]


def naive(now: Model, before: Model, directions: Sequence[Model]) -> list[float]:
    change = torch.cat([(a.float() - b.to(a.dtype).float()).flatten() for a, b in zip(now, before, strict=True)])
    lines = (torch.cat([w.float().flatten() for w in direction]) for direction in directions)
    return [F.cosine_similarity(change, line, dim=0).item() for line in lines]


def fused(now: Model, before: Model, directions: Sequence[Model], *, compiled: bool) -> Tensor:
    tensors = zip(now, before, zip(*directions, strict=True), strict=True)
    return torch.stack([pass_over(a, b, ws, compiled=compiled) for a, b, ws in tensors]).sum(0)


def readers(source: Tensor) -> list[Callable[[], Tensor]]:
    """Return ways to read all of a tensor once."""
    sum_rows = torch.compile(lambda x: x.sum(1))
    sum_four = torch.compile(lambda a, b, c, d: (a + b + c + d).sum(1))
    rows = source.view(-1, 4096)
    return [source.sum, lambda: sum_rows(rows), lambda: sum_four(*rows.chunk(4))]


def seconds(act: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["120M"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 4], help="directions")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    table = Table(title="one pass over all weights: medians", title_justify="left")
    timed = "first s, ms, GB/s, of reading, blocks ms, naive ms, naive/compiled, naive/blocks"
    headings = f"weights, now, θ₀, K, threads, {timed}"
    for heading in headings.split(", "):
        table.add_column(heading, justify="right")
    torch.set_grad_enabled(False)
    source = torch.ones(1 << 28)
    for size in given.sizes:
        lengths = shapes(*SIZES[size])
        lines = [drawn(lengths, torch.bfloat16) for _ in range(max(given.counts))]
        for first, second in ((a, b) for a in given.precisions for b in given.precisions):
            now, before = drawn(lengths, PRECISIONS[first]), drawn(lengths, PRECISIONS[second])
            for threads in given.threads:
                torch.set_num_threads(threads)
                ways = readers(source)
                for count in given.counts:
                    data = now, before, lines[:count]
                    moved = sum(tensor.nbytes for model in (now, before, *lines[:count]) for tensor in model)
                    calls = compiled_calls()
                    begun = seconds(lambda data=data: fused(*data, compiled=True))  # type: ignore[misc]
                    if compiled_calls() == calls:
                        raise SystemExit(f"Nothing was compiled: {failure()}")
                    [way() for way in ways]
                    compiled, blocks, slow, read = [], [], [], []
                    for number in range(given.rounds):
                        read.append(source.nbytes / min(seconds(way) for way in ways))
                        compiled.append(seconds(lambda data=data: fused(*data, compiled=True)))  # type: ignore[misc]
                        blocks.append(seconds(lambda data=data: fused(*data, compiled=False)))  # type: ignore[misc]
                        if number < NAIVE_ROUNDS:
                            slow.append(seconds(lambda data=data: naive(*data)))  # type: ignore[misc]
                    middle = statistics.median
                    share = middle(moved / took / rate for took, rate in zip(compiled, read, strict=True))
                    gain = middle(a / b for a, b in zip(slow, compiled, strict=False))
                    gain_blocks = middle(a / b for a, b in zip(slow, blocks, strict=False))
                    speed = moved / middle(compiled) / 1e9
                    table.add_row(
                        f"{sum(lengths) / 1e6:.0f}M", first, second, str(count), str(threads), f"{begun:.1f}",
                        f"{middle(compiled) * 1e3:.0f}", f"{speed:.1f}", f"{share:.0%}", f"{middle(blocks) * 1e3:.0f}",
                        f"{middle(slow) * 1e3:.0f}", f"{gain:.0f}", f"{gain_blocks:.0f}",
                    )  # fmt: skip
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
