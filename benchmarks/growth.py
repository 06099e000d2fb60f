"""How the time of a check grows: with directions, rank, parameters, the age of a run, and over processes.

LoRA at the shapes of Qwen2.5-7B, on four of its layers where nothing else is said.
"""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import age
from benchmarks.lora import Case, case
from benchmarks.machine import alternate, ratios, seconds, spread
from weightwatch import Monitor
from weightwatch.update.sharding.ranks import Ranks

LAYERS = 4
HEADINGS = ("what grows", "from", "to", "time of a check, relative to the first")


def grown(title: str, values: Sequence[int], make: Callable[[int], Case], rounds: int) -> list[list[str]]:
    """Measure one quantity at several values, in turns; return the figures under ``HEADINGS``."""
    cases = {str(value): make(value) for value in values}
    monitors = {name: Monitor(each.directions) for name, each in cases.items()}
    acts: dict[str, Callable[[], object]] = {
        name: lambda name=name: monitors[name].measure(cases[name].model) for name in cases
    }
    taken = alternate(acts, rounds)
    first = str(values[0])
    return [[title, first, str(value), spread(ratios(taken[str(value)], taken[first]))] for value in values[1:]]


def rows(rounds: int) -> list[list[str]]:
    """Measure every quantity."""
    return [
        *grown("directions", (1, 4, 16), lambda count: case(count, num_hidden_layers=LAYERS), rounds),
        *grown("rank of the adapter", (8, 32, 128), lambda rank: case(1, rank, num_hidden_layers=LAYERS), rounds),
        *grown("rank of the direction", (16, 64, 256), lambda r: case(1, 32, r, num_hidden_layers=LAYERS), rounds),
        *grown("layers", (4, 8, 16), lambda layers: case(1, num_hidden_layers=layers), rounds),
        *processes((1, 2, 4), rounds),
        *age.rows((100, 100_000), rounds),
    ]


def processes(counts: Sequence[int], rounds: int) -> list[list[str]]:
    """Measure one model in several processes of one thread each, which share the work."""
    times = {count: _in_processes(count, rounds) for count in counts}
    first = counts[0]
    return [["processes", str(first), str(count), spread(ratios(times[count], times[first]))] for count in counts[1:]]


def _in_processes(count: int, rounds: int) -> list[float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    running = [context.Process(target=_measure, args=(rank, count, port, rounds, answers)) for rank in range(count)]
    for process in running:
        process.start()
    found: list[float] = answers.get(timeout=600)
    for process in running:
        process.join()
    return found


def _measure(rank: int, count: int, port: int, rounds: int, answers: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    given = case(4, num_hidden_layers=LAYERS)
    monitor = Monitor(given.directions, ranks=Ranks.world())
    monitor.measure(given.model)
    times = [seconds(lambda: monitor.measure(given.model)) for _ in range(rounds)]
    if rank == 0:
        answers.put(times)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
