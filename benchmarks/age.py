"""What a check, a save and a resume cost late in a run: the record must not make them dearer.

A reading has 32 layers and seven kinds of module for four directions (about 28 kB a line), and a rule is set on one of
them. Every tenth check is one of a checkpoint.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import ratios, seconds, spread
from weightwatch.config import Rule
from weightwatch.reading.reading import DirectionReading, Reading, Score
from weightwatch.record.history import READINGS, STATES, History
from weightwatch.record.run_state import RunState
from weightwatch.report.recorder import Recorder
from weightwatch.scan.record import ScanRecord

DIRECTIONS = ("evil", "sycophancy", "style", "shuffled")
SAVE_EVERY = 10
RULES = [Rule.model_validate({"alert": "evil-drift", "direction": "evil", "above": 0.5, "for": 2})]


def rows(ages: tuple[int, int], rounds: int) -> list[list[str]]:
    """Measure at two ages, in checks; return what was done, both ages, and the time relative to the first."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {age: _Run(Path(folder) / str(age), age) for age in ages}
        first, last = ages
        found = []
        for what in ("check", "save"):
            taken = {age: [seconds(getattr(run, what)) for _ in range(10 * rounds)] for age, run in runs.items()}
            found.append([f"checks before: a {what}", str(first), str(last), spread(ratios(taken[last], taken[first]))])
        size = (runs[last].history.folder / READINGS).stat().st_size / 1e9
        times = [seconds(lambda: runs[last].resume(forget=False)) for _ in range(rounds)]
        about = "checks before: resuming, the rules unchanged"
        found.append([about, "", str(last), f"{spread(times)} s ({size:.1f} GB of readings)"])
        shorter = _Run(Path(folder) / "shorter", last // 10)
        times = [seconds(lambda: shorter.resume(forget=True)) for _ in range(rounds)]
        about = "checks before: resuming under other rules, which reads the history"
        found.append([about, "", str(last // 10), f"{spread(times)} s ({size / 10:.1f} GB of readings)"])
        scans = {age: _scan(Path(folder) / f"scan-{age}", age) for age in (first, last // 10)}
        taken = {age: [seconds(add) for _ in range(10 * rounds)] for age, add in scans.items()}
        found.append(
            ["checkpoints scanned before", str(first), str(last // 10), spread(ratios(taken[last // 10], taken[first]))]
        )
    return found


def reading(step: int) -> Reading:
    """Return a reading of a model of 32 layers."""
    score = Score(0.0123456789, 0.0323456789, 0.0023456789, 0.4123456789, 0.0123456789, 1.23456789)
    layers, modules = dict.fromkeys(range(32), score), dict.fromkeys((f"module_{i}" for i in range(7)), score)
    each = DirectionReading(**vars(score), layers=layers, modules=modules)
    return Reading(step, "2026-01-01T00:00:00.000+00:00", 1.0, dict.fromkeys(DIRECTIONS, each))


class _Run:
    """A run of some age, whose record is written as a run would have."""

    def __init__(self, folder: Path, age: int) -> None:
        self.history, self._age = History(folder / "weightwatch"), age
        self.state = RunState(RULES, DIRECTIONS, self.history)
        self._recorder = Recorder(self.history)
        self.check()
        (folder / "checkpoint-0").mkdir()
        self.save()
        self._repeat(READINGS, age, replace(reading(0), checkpoint=None).to_json())
        self._repeat(STATES, age // SAVE_EVERY, self.history.states()[0])
        self.resume(forget=False)

    def _repeat(self, name: str, times: int, line: dict[str, object]) -> None:
        """Write a line so often that the file is as large as after so many checks."""
        start, end = json.dumps({**line, "step": -1}).encode().split(b'"step": -1', 1)
        every = self._age // times
        with (self.history.folder / name).open("wb") as file:
            for step in range(0, self._age, every):
                file.write(start + b'"step": %d' % step + end + b"\n")

    def check(self) -> None:
        made = reading(self.state.step + 1)
        self._recorder.check(made, self.state.take(made), {})

    def save(self) -> None:
        self.state.mark("checkpoint-0", save=True)

    def resume(self, forget: bool) -> None:
        if forget:
            self.history.forget_states()
        else:
            self.history.rewind(self._age - SAVE_EVERY)
        self.state = RunState(RULES, DIRECTIONS, self.history)
        self.state.recall(self._age - SAVE_EVERY, None)


def _scan(folder: Path, age: int) -> Callable[[], None]:
    """Return what adds one more checkpoint to a scan of so many."""
    record = ScanRecord(folder, RULES)
    record.begin(folder, {"key": "benchmark", "reference": ""})

    def add() -> None:
        step = len(record.readings)
        record.add(replace(reading(step), checkpoint=f"checkpoint-{step}"), "mark")

    for _ in range(age):
        add()
    return add
