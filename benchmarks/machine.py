"""The machine that a benchmark runs on: its description, its reading and multiplying speed, timing and peak memory."""

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

MB = 2**20


def described(threads: int) -> str:
    """Return a line that describes the machine and the versions of Python and torch."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "")
    memory = int(next(line.split()[1] for line in _lines("/proc/meminfo") if "MemTotal" in line)) / 2**20
    cpu = cpu or platform.processor() or platform.machine()
    return (
        f"{cpu}, {os.cpu_count()} cores of which {threads} used, {memory:.0f} GB, Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


def seconds(act: Callable[[], object]) -> float:
    """Return the duration of a call, in seconds."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def alternate(
    acts: Mapping[str, Callable[[], object]], rounds: int, once: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Time several calls in turns, so that the load of the machine affects all of them alike.

    Args:
        acts: Calls to time, by name. Each runs once untimed before the first round.
        rounds: Number of rounds.
        once: Names of slow calls. They run in the first round only, without the untimed run, and that time is repeated
            for the other rounds.

    Returns:
        The duration of each round in seconds, by name.
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
    """Return the ratio of two series for each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Return the median and the range as text."""
    low, middle, high = (form.format(value) for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def peak(act: Callable[[], object]) -> float:
    """Return the peak increase of the process's resident memory during a call, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    act()
    return (_status("VmHWM") - before) / 1024


def multiplying() -> Callable[[], object]:
    """Return a call that multiplies two square fp32 matrices, the fastest kind of product. It takes 2 · 2048³ flops."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return lambda: a @ b


MULTIPLYING = 2.0 * 2048**3


def readers(size: int) -> dict[str, Callable[[], object]]:
    """Return several calls that read a tensor once. The fastest gives the bandwidth of the machine's memory.

    Args:
        size: Size of the tensor, in bytes.
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


def _status(field: str) -> int:
    return int(next(line.split()[1] for line in _lines("/proc/self/status") if line.startswith(field)))


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
