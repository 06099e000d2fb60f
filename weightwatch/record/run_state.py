"""Where a run is: its newest reading, the peaks of its directions and the states of its rules."""

import json
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeAlias

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import Engine
from weightwatch.rules.manager import RuleManager

Peaks: TypeAlias = dict[str, tuple[float, int]]
"""For each direction its largest reach cosine, and the step of that."""
Shared: TypeAlias = tuple[Reading | None, Peaks, Engine, list[Alert]]
"""What every process of a run goes on from."""


class RunState:
    """The state of a run. It is noted at each checkpoint, so that a resumed run need not read its whole history.

    Args:
        rules: The alerting rules.
        directions: Names of what is watched, controls included.
        history: The record of the run.

    Attributes:
        last: The newest reading; None before the first.
        peaks: The peaks so far.
        rules: The rules, their states and alerts.
    """

    def __init__(self, rules: Sequence[Rule], directions: Sequence[str], history: History) -> None:
        self.last: Reading | None = None
        self.peaks: Peaks = {}
        self.rules = RuleManager(rules, self._exists)
        self._watched, self._history = frozenset(directions), history
        # What noted states depend on: under other rules or directions the history has to be read again.
        content = [sorted(self._watched), [rule.model_dump() for rule in rules]]
        self._key = sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def step(self) -> int:
        """Step of the newest reading; -1 before the first."""
        return self.last.step if self.last is not None else -1

    def take(self, reading: Reading) -> list[Alert]:
        """Apply the rules to a reading, and take it as the newest. Return the alerts that it raised or resolved."""
        raised = self.rules.apply(reading)
        self.last = reading
        self._note_peaks(reading)
        return raised

    def mark(self, checkpoint: str) -> None:
        """Note that a checkpoint holds the weights of the newest reading."""
        assert self.last is not None
        self.last = replace(self.last, checkpoint=checkpoint)
        self.rules.mark(checkpoint)

    def save(self) -> None:
        """Write down what ``mark`` has noted: the checkpoint in the reading's line, and the state at it."""
        assert self.last is not None
        self._history.amend(self.last)
        self._history.add_state(self.last.step, self._noted(str(self.last.checkpoint)))

    def recall(self, step: int, checkpoint: str | None) -> list[Alert]:
        """Find the state at a step again: noted at its checkpoint, or else by applying the rules to the whole history.

        Args:
            step: The step that training resumes from; the history ends there.
            checkpoint: Name of the checkpoint that training resumes from, if it is one of this run.

        Returns:
            The alerts that fire now and are not recorded: of rules that are new, or stricter now.

        Raises:
            WeightWatchError: The history is damaged.
        """
        known, states, self.last = self._history.alerts(), self._history.states(), self._history.last_reading()
        if self.last is not None and self.step == step and checkpoint is not None and self._exists(checkpoint):
            self.last = replace(self.last, checkpoint=checkpoint)
            self._history.amend(self.last)  # a run that was killed between a checkpoint and its note
        if self.step == step and states and states[-1]["step"] == step and {s["key"] for s in states} == {self._key}:
            self.rules.resume(states, known)
            self.peaks = {name: (value, at) for name, (value, at) in states[-1]["peaks"].items()}
            return []
        self._replay()
        told, newest = (
            {(alert.alert, alert.step) for alert in known},
            {alert.alert: alert for alert in self.rules.alerts},
        )
        news = [newest[rule] for rule in self.rules.firing if (rule, newest[rule].step) not in told]
        self.rules.alerts = [*known, *news]
        return news

    @property
    def shared(self) -> Shared:
        """What the other processes of the run need, if this one alone has read the record."""
        return self.last, self.peaks, self.rules.engine, self.rules.alerts

    @shared.setter
    def shared(self, found: Shared) -> None:
        self.last, self.peaks, self.rules.engine, self.rules.alerts = found

    def _replay(self) -> None:
        """Apply the rules to the history from where on it holds all directions, and note the states anew."""
        self._history.forget_states()
        for reading in self._history.readings():
            self.last = reading
            self._note_peaks(reading)
            if self._watched <= reading.directions.keys():
                self.rules.apply(reading)
                if reading.checkpoint is not None:
                    self._history.add_state(reading.step, self._noted(reading.checkpoint))

    def _noted(self, checkpoint: str) -> dict[str, Any]:
        return {"checkpoint": checkpoint, "key": self._key, **self.rules.state(), "peaks": self.peaks}

    def _note_peaks(self, reading: Reading) -> None:
        for name, found in reading.directions.items():
            if name not in self.peaks or found.reach_cosine > self.peaks[name][0]:
                self.peaks[name] = found.reach_cosine, reading.step

    def _exists(self, checkpoint: str) -> bool:
        return (self._history.folder.parent / checkpoint).is_dir()
