"""Real processes in one gloo group, kept for many cases: starting them takes longer than any case."""

import datetime
import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

DEAD = "the process died"
QUIET = 10.0  # seconds in which the other processes may report, once one has failed


class Processes:
    """A group of processes that run a function of a module together.

    Args:
        world: How many.
        grouped: Start torch.distributed in them; False leaves that to what they run (the Trainer).
    """

    def __init__(self, world: int, *, grouped: bool = True) -> None:
        self.world, self.grouped = world, grouped
        self._running: list[tuple[Any, Connection]] = []

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = 300) -> list[Any]:
        """Return what ``function(*arguments)`` returns in each process, in the order of the ranks."""
        if not self._running:
            self._start()
        for _, end in self._running:
            end.send_bytes(pickle.dumps((function, arguments)))
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        waiting = {end: rank for rank, (_, end) in enumerate(self._running)}
        until = time.monotonic() + timeout
        while waiting and (left := until - time.monotonic()) > 0:
            for end in wait(list(waiting), left):
                rank = waiting.pop(end)  # type: ignore[call-overload]  # wait returns what it was given
                try:
                    good, answer = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]  # as above
                except EOFError:
                    good, answer = False, DEAD
                (answers if good else failures)[rank] = answer
                if not good:  # the others may wait for it in a collective
                    until = min(until, time.monotonic() + QUIET)
        for rank in waiting.values():
            failures[rank] = "no answer: it hangs, or waits for the others"
        if waiting or DEAD in failures.values():
            self.stop()
        if failures:
            texts = [f"rank {rank}: {text}" for rank, text in sorted(failures.items(), key=lambda item: len(item[1]))]
            raise AssertionError(f"{function.__name__}{arguments} failed:\n" + "\n".join(texts))
        return [answers[rank] for rank in range(self.world)]

    def stop(self) -> None:
        """End the processes; the next run starts new ones."""
        for process, end in self._running:
            end.close()
            process.terminate()
        for process, _ in self._running:
            process.join()
        self._running = []

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.world, "LOCAL_WORLD_SIZE": self.world}
            environment = {**settings, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = context.Process(target=_serve, args=(theirs, environment, self.grouped), daemon=True)
            process.start()
            theirs.close()
            self._running.append((process, ours))


def _serve(end: Connection, environment: dict[str, Any], grouped: bool) -> None:
    quiet = {"OMP_NUM_THREADS": 1, "DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": 0, "HF_HUB_OFFLINE": 1}
    os.environ.update({key: str(value) for key, value in {**quiet, **environment}.items()})
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if grouped:
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    while True:
        try:
            function, arguments = pickle.loads(end.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer: tuple[bool, Any] = (True, function(*arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        end.send_bytes(pickle.dumps(answer))
