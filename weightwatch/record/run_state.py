"""The state of a run: its newest reading, the peaks of its directions and the states of its rules."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from hashlib import sha256
from typing import TypeAlias

from weightwatch.config import Rule
from weightwatch.reading.reading import Guarded, Reading
from weightwatch.record.history import History, State
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import RuleState
from weightwatch.rules.manager import Memory, RuleManager
from weightwatch.setup import Setup

Peaks: TypeAlias = dict[str, tuple[float, int]]
"""The largest reach cosine of each direction, and its step."""


class RunState:
    """The state of a run. It is saved at each checkpoint, so that a resumed run need not read its whole history.

    Args:
        rules: The alerting rules.
        directions: Names of the watched directions, controls included.
        history: The record of the run.

    Attributes:
        setup: How the run is trained and watched; None before that is known.
        last: The newest reading; None before the first.
        peaks: The peaks so far.
        taken: The dose that the guard has taken back so far, of each direction.
        rules: The rules, their states and alerts.
    """

    def __init__(self, rules: Sequence[Rule], directions: Iterable[str], history: History) -> None:
        self.last: Reading | None = None
        self.peaks: Peaks = {}
        self.taken: dict[str, float] = {}
        self.setup: Setup | None = None
        self.rules = RuleManager(rules, self._exists)
        self._watched, self._history = frozenset(directions), history
        # Saved states are of no use to other rules or directions, or to a version that keeps other states.
        content = [sorted(self._watched), [rule.model_dump() for rule in rules], [f.name for f in fields(RuleState)]]
        self._key = sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def step(self) -> int:
        """Step of the newest reading; -1 before the first."""
        return self.last.step if self.last is not None else -1

    def begin(self, setup: Setup) -> None:
        """Take how the run is trained, before the first reading."""
        self.setup = setup
        self.rules = RuleManager(self.rules.engine.rules, self._exists, setup)

    def take(self, reading: Reading) -> list[Alert]:
        """Apply the rules to a reading, and make it the newest. Return the alerts that it raised or resolved."""
        raised = self.rules.apply(reading)
        self.last = reading
        self._note(reading)
        return raised

    def add(self, alert: Alert) -> bool:
        """Add an alert that is not that of a rule. Return whether it is new."""
        new = all((known.alert, known.step) != (alert.alert, alert.step) for known in self.rules.alerts)
        if new:
            self.rules.alerts.append(alert)
        return new

    def note_guarded(self, guarded: Guarded | None) -> None:
        """Add what a guard has taken back."""
        for name, dose in guarded.dose.items() if guarded is not None else ():
            self.taken[name] = self.taken.get(name, 0.0) + dose

    def mark(self, checkpoint: str, *, save: bool) -> None:
        """Note that a checkpoint has the weights of the newest reading.

        Args:
            checkpoint: Name of the checkpoint.
            save: Whether to write it down: into the line of the reading, and with the state into ``states.jsonl``.
        """
        if self.last is None:
            return
        self.last = replace(self.last, checkpoint=checkpoint)
        self.rules.mark(checkpoint)
        if save:
            self._history.amend(self.last)
            self._save(self.last)

    def recall(self, step: int, checkpoint: str | None) -> list[Alert]:
        """Restore the state at a step, from the saved states and the readings after the last of them.

        If the rules or directions have changed since, the rules are applied to the whole history.

        Args:
            step: The step that training resumes from; the history ends there.
            checkpoint: Name of the checkpoint that training resumes from, if it is one of this run.

        Returns:
            The alerts that fire now and are not recorded: of rules that are new, or stricter now.

        Raises:
            WeightWatchError: The history is damaged.
        """
        known, self.last = self._history.alerts(), self._history.last_reading()
        if self.last is not None and self.step == step and checkpoint is not None and self._exists(checkpoint):
            self.last = replace(self.last, checkpoint=checkpoint)
            self._history.amend(self.last)  # a crash may have prevented it
        if not self._restored(known):
            self._history.forget_states()
            self.peaks, self.taken = {}, {}
            self.rules = RuleManager(self.rules.engine.rules, self._exists, self.setup)
            self._replay(self._history.readings())
        for alert in known:
            if alert.message is not None:  # not that of a rule, so no reading gives it again
                self.add(alert)
        told = {(alert.alert, alert.step) for alert in known}
        newest = {alert.alert: alert for alert in self.rules.alerts}
        return [newest[rule] for rule in self.rules.firing if (rule, newest[rule].step) not in told]

    @property
    def shared(self) -> tuple[Reading | None, Peaks, dict[str, float], Memory]:
        """What the other processes of the run need, when only one has read the record."""
        return self.last, self.peaks, self.taken, self.rules.memory

    @shared.setter
    def shared(self, found: tuple[Reading | None, Peaks, dict[str, float], Memory]) -> None:
        self.last, self.peaks, self.taken, self.rules.memory = found

    def _restored(self, known: Sequence[Alert]) -> bool:
        """Continue from the saved states, if they are of these rules and every alert that fires is recorded."""
        states = self._history.states()
        if not states or any(
            state.key != self._key or state.states.keys() != self.rules.states.keys() for state in states
        ):
            return False
        self.rules.resume(states[-1].states, {state.checkpoint: state.clean for state in states}, known)
        self.peaks, self.taken, step = dict(states[-1].peaks), dict(states[-1].taken), states[-1].step
        self.rules.alerts = [alert for alert in self.rules.alerts if alert.step <= step]
        newest = {alert.alert: alert.state for alert in self.rules.alerts}
        if any(newest.get(rule) != "firing" for rule in self.rules.firing):
            return False
        self._replay(self._history.readings_after(step))
        return True

    def _replay(self, readings: Iterable[Reading]) -> None:
        """Apply the rules to recorded readings that have all directions, and save the states at their checkpoints."""
        for reading in readings:
            self.last = reading
            self._note(reading)
            if self._watched <= reading.directions.keys():
                self.rules.apply(replace(reading, checkpoint=None))  # as in the run: checked first, then saved
                if reading.checkpoint is not None:
                    self.rules.mark(reading.checkpoint)
                    self._save(reading)

    def _save(self, reading: Reading) -> None:
        self._history.add_state(
            State(
                step=reading.step,
                checkpoint=str(reading.checkpoint),
                key=self._key,
                states=self.rules.states,
                clean=self.rules.engine.clean,
                peaks=self.peaks,
                taken=self.taken,
            )
        )

    def _note(self, reading: Reading) -> None:
        """Update the peaks, and add what the guard has taken back."""
        self.note_guarded(reading.guard)
        for name, found in reading.directions.items():
            if name not in self.peaks or found.reach_cosine > self.peaks[name][0]:
                self.peaks[name] = found.reach_cosine, reading.step

    def _exists(self, checkpoint: str) -> bool:
        try:
            return (self._history.folder.parent / checkpoint).is_dir()
        except OSError:  # a folder that can't be read now says nothing of what is in it
            return True
