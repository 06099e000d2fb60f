"""The machine that a benchmark runs on: what it is, how fast it reads and multiplies, and how its time is taken."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

MB = 2**20


def described(threads: int) -> str:
    """Return the machine and the versions in a line."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    memory = int(next(line.split()[1] for line in _lines("/proc/meminfo") if "MemTotal" in line)) / 2**20
    cpu = cpu or platform.processor() or platform.machine()
    return (
        f"{cpu}, {os.cpu_count()} cores of which {threads} used, {memory:.0f} GB, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def seconds(act: Callable[[], object]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def alternate(
    acts: Mapping[str, Callable[[], object]], rounds: int, once: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Time several things in turns, so that all meet the same load of the machine.

    Args:
        acts: What to time, by name.
        rounds: How often. Each runs once before, untimed.
        once: Those that are too slow for that: they run in the first round alone, and their time counts for all.
    """
    for name, act in acts.items():
        if name not in once:
            act()
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for number in range(rounds):
        for name, act in acts.items():
            taken[name].append(taken[name][0] if number and name in once else seconds(act))
    return taken


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratios of two series round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return the median and the range."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def peak(act: Callable[[], object]) -> float:
    """Return by how many MB a call raises the process's resident memory at most."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = _status("VmRSS")
    act()
    return (_status("VmHWM") - before) / 1024


def multiplying() -> Callable[[], object]:
    """Return a product of two square fp32 matrices: what the machine multiplies fastest. It takes 2 · 2048³ flops."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda: a @ b


MULTIPLYING = 2.0 * 2048**3


def readers(size: int) -> dict[str, Callable[[], object]]:
    """Return several ways to read a tensor once; the fastest of them tells what the machine's memory gives.

    Args:
        size: Bytes that each reads.
    """
    source = torch.ones(size // 4 // 4096, 4096)
    sum_rows = torch.compile(lambda x: x.sum(1))
    sum_four = torch.compile(lambda a, b, c, d: (a + b + c + d).sum(1))
    return {
        "sum": source.sum,
        "rows": lambda: sum_rows(source),
        "four": lambda: sum_four(*source[: len(source) // 4 * 4].chunk(4)),
    }


def fastest(taken: Mapping[str, Sequence[float]]) -> list[float]:
    """Return the shortest time of each round."""
    return [min(values) for values in zip(*taken.values(), strict=True)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, size: float = 0.02) -> Tensor:
    """Return normal random numbers."""
    return (size * torch.randn(shape, generator=generator)).to(dtype)


def _status(field: str) -> int:
    return int(next(line.split()[1] for line in _lines("/proc/self/status") if line.startswith(field)))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
