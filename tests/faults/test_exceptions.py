"""Exceptions of every kind, in every part of the monitoring: the training goes on, except when the user ends it."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.faults.limits import within
from tests.faults.sample import sample
from tests.support.models import lora, low_rank, tiny_llama
from tests.support.runs import trainer
from weightwatch import Monitor, WeightWatchCallback
from weightwatch.record.history import History
from weightwatch.report.log import Log
from weightwatch.report.notifier import Notifier
from weightwatch.report.recorder import Recorder
from weightwatch.report.tensorboard import TensorBoard
from weightwatch.rules.engine import Engine


class PanicError(BaseException):
    """What Rust extensions raise when they panic: pyo3's PanicException is no ``Exception``."""


class MuteError(Exception):
    """An exception whose text can't be made."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class LoneSurrogateError(Exception):
    """An exception whose text can't be encoded."""

    def __str__(self) -> str:
        return "\udce9\x1b[31m [/red] {"


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "an ordinary one": lambda: RuntimeError("x"),
    "of memory": lambda: MemoryError(),
    "of recursion": lambda: RecursionError("x"),
    "without arguments": lambda: KeyError(),
    "without a text": MuteError,
    "with a text that can't be encoded": LoneSurrogateError,
    "SystemExit": lambda: SystemExit(0),
    "CancelledError": lambda: asyncio.CancelledError(),
    "GeneratorExit": lambda: GeneratorExit(),
    "a panic": lambda: PanicError("x"),
    "a group": lambda: BaseExceptionGroup("x", [SystemExit(1)]),
}
PLACES: dict[str, tuple[type, str]] = {
    "measuring": (Monitor, "read"),
    "judging": (Engine, "apply"),
    "recording": (Recorder, "check"),
    "writing": (History, "add_reading"),
    "telling": (Log, "check"),
    "drawing": (TensorBoard, "check"),
    "beginning": (TensorBoard, "begin"),
    "ending": (TensorBoard, "end"),
    "notifying": (Notifier, "check"),
    "waiting for channels": (Notifier, "end"),
}


def failing(method: Callable[..., object], make: Callable[[], BaseException], free: int) -> Callable[..., object]:
    """Return a method that raises after some calls."""
    calls = [0]

    def fails(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] > free:
            raise make()
        return method(*args, **kwargs)

    return fails


def steps_of(folder: Path) -> int:
    rule = {"alert": "far", "direction": "evil", "above": 0.5}
    config = {"every": 1, "summary": False, "rules": [rule], "notify": [{"command": ["true"]}]}
    watch = WeightWatchCallback([low_rank(tiny_llama(), 5)], config=config)
    run = trainer(lora(tiny_llama()), folder, watch, max_steps=3)
    with within(30):
        run.train()
    return int(run.state.global_step)


def faults() -> Iterator[tuple[str, tuple[str, str, bool]]]:
    """Yield each exception in each place, and with it another when the fault is recorded."""
    for kind, place, again in product(EXCEPTIONS, PLACES, (False, True)):
        yield f"{kind} in {place}{', then in recording it' * again}", (kind, place, again)


@pytest.mark.parametrize(("kind", "place", "again"), sample(faults(), 5))
def test_no_exception_of_the_monitoring_ends_the_training(
    kind: str, place: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = PLACES[place]
    free = 1 if place in ("measuring", "judging") else 0
    monkeypatch.setattr(where, name, failing(getattr(where, name), EXCEPTIONS[kind], free))
    if again:
        monkeypatch.setattr(History, "add_error", failing(History.add_error, EXCEPTIONS[kind], 0))
    assert steps_of(tmp_path) == 3


@pytest.mark.parametrize("place", ["measuring", "recording", "drawing"])
def test_ctrl_c_ends_the_training_wherever_it_comes(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = PLACES[place]
    monkeypatch.setattr(where, name, failing(getattr(where, name), KeyboardInterrupt, 1))
    with pytest.raises(KeyboardInterrupt):
        steps_of(tmp_path)
