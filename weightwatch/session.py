"""A watched run, independent of the trainer: when to check, what to do then, and what a fault may do."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from weightwatch.config import Config
from weightwatch.faults import Faults, attempt, raise_any
from weightwatch.guarding import Guarding
from weightwatch.monitor import Monitor
from weightwatch.opening import Opening
from weightwatch.reading.reading import Reading
from weightwatch.record.journal import Journal
from weightwatch.record.run_state import RunState
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.reporting import Reporting
from weightwatch.requests import Requests
from weightwatch.rules.alert import Alert
from weightwatch.setup import Setup, Training
from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.vectors.errors import WeightWatchError, text_of

_logger = logging.getLogger("weightwatch")


class Session:
    """The monitoring of one run.

    A trainer's callback forwards its events: ``begin``, ``forward``, ``before_step``, ``after_step``, ``step_end``,
    ``saved``, ``end``. In distributed training every
    process calls each method. If one process requests an action, or fails, all do.

    Measuring and the rules do not depend on the record: what can't be written waits in memory until it can be. No fault
    ends the training, except what ``begin`` raises, Ctrl-C, and what a signal handler raises.

    Args:
        monitor: Measures the model.
        config: The settings.
        folder: ``<output_dir>/weightwatch``.
        events: TensorBoard run folder.
        ranks: The processes of the run. All measure and apply the rules; only the main one records and shows.
        reporters: Further reporters, which every process calls.

    Attributes:
        monitor, config: See above.
        history: The record of the run.
        under_way: Whether training has begun and has not ended.
    """

    def __init__(
        self,
        monitor: Monitor,
        config: Config,
        folder: Path,
        events: Path,
        *,
        ranks: Ranks = ALONE,
        reporters: Sequence[Reporter] = (),
    ) -> None:
        self.monitor, self.config, self.history = monitor, config, Journal(folder)
        self.under_way = False
        self._faults = Faults(self.history if ranks.main else None, keep=config.on_error == "raise")
        self._opening, self._events = Opening(self.history, self._faults, ranks), events
        self._state = RunState(config.rules, [direction.name for direction in monitor.directions], self.history)
        guard = config.guard.mode if config.guard is not None else None
        self._setup = Setup.of(Training(), config.every, monitor.directions, guard)
        self._ranks = ranks
        self._reporting = Reporting(reporters, self.history, self._faults)
        self._watching, self._tried, self._save_owed = True, -1, False
        self._guarding = Guarding(monitor, config, ranks, self._guard_failed)

    @property
    def run(self) -> str:
        """The run's id, which its checkpoints carry; empty before ``begin``."""
        return self._opening.folder.run

    @property
    def last(self) -> Reading | None:
        """The newest reading; None before the first."""
        return self._state.last

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, those before a resume included."""
        return self._state.rules.alerts

    @property
    def firing(self) -> tuple[str, ...]:
        """Names of the rules that fire now."""
        return tuple(self._state.rules.firing)

    # Trainer events

    def begin(
        self,
        model: nn.Module,
        step: int,
        *,
        optimizer: Any = None,
        checkpoint: str | None = None,
        first: "Session | None" = None,
        run: str | None = None,
        training: Training | None = None,
    ) -> Requests:
        """Record θ₀, or restore it, and make sure that everything can be measured and every rule applied.

        Args:
            model: The model that will be trained.
            step: 0 for a new run, else the step that training resumes from.
            optimizer: The optimizer, for the guard.
            checkpoint: Name of the checkpoint that training resumes from.
            first: The session of a first attempt, if training restarts with the weights of that one (out of memory):
                its θ₀ is kept, and a guard that it armed stays armed.
            run: The id of the run that goes on, if it is known.
            training: How it is trained, as far as the trainer tells. Calibrated rules hold for such runs only.

        Returns:
            Actions of alerts that a resumed run raises on its history, because rules are new or stricter now.

        Raises:
            WeightWatchError: See ``Monitor.validate``, ``Engine.apply``, ``theta0.restore``, ``Guard.begin`` and
                ``Reporting.open_channels``. After any other fault training continues without monitoring, unless
                ``on_error: raise`` is set, or a guard is not to be done without.
        """
        self._tried = step
        self._setup = self._setup.trained(training or Training())
        self._state.begin(self._setup)
        begun: list[tuple[ModelView, list[Alert]]] = []
        fault = attempt(lambda: begun.append(self._begin(model, step, checkpoint, first is not None, run)))
        # A process that is alone with its fault would leave the others waiting at the next check.
        fault = attempt(lambda: self._ranks.agreed(partial(raise_any, fault)))
        if fault is None:
            self._guarding.arm(first is not None and first._guarding.armed)
            fault = attempt(lambda: self._guarding.begin(step, model, optimizer, begun[0][0], self.alerts))
        if fault is not None:
            self._watching = False
            self._opening.folder.release()
            if isinstance(fault, WeightWatchError) or self.config.on_error == "raise":
                raise fault
            if self._guarding.required:
                raise WeightWatchError(
                    f"The guard can't begin, because the monitoring can't: {text_of(fault).rstrip('.')}. Training is "
                    "stopped, since it would go on unguarded. Set `on_guard_error: continue` to allow that."
                ) from fault
            unguarded = " and without its guard" if self._guarding.under_way else ""
            self._faults.note(step, fault, outcome=f"Training continues without monitoring{unguarded}.")
            self._guarding.release()
            return Requests()
        requests = Requests.of(begun[0][1])
        self.under_way, self._save_owed = True, requests.save
        return requests

    def forward(self) -> AbstractContextManager[None]:
        """Return the context in which the forward and backward passes of the training run."""
        return self._guarding.forward()

    def before_step(self, step: int) -> None:
        """Let the guard change the gradients before the optimizer's step.

        Raises:
            WeightWatchError: The guard failed, unless ``on_guard_error: continue`` is set.
        """
        self._guarding.before_step(step)

    def after_step(self, step: int) -> None:
        """Let the guard take back what the optimizer's step has moved along its directions.

        Raises:
            WeightWatchError: See ``before_step``.
        """
        self._guarding.after_step(step)

    def step_end(self, model: nn.Module, step: int, *, saves: bool, stops: bool) -> Requests:
        """Check if a check is due, if a checkpoint follows, or if training ends; at most once a step.

        Args:
            model: The model now.
            step: Optimizer steps so far.
            saves: Whether a checkpoint will be written at this step.
            stops: Whether training ends at this step.

        Raises:
            WeightWatchError: The guard was not called in the step, unless ``on_guard_error: continue`` is set.
        """
        self._guarding.step_end(step)
        if step % self.config.every == 0 or saves or self._save_owed or stops:
            stops |= self._check(model, step)
        return Requests(self._save_owed, stops)

    def saved(self, model: nn.Module, step: int, checkpoint: str) -> Requests:
        """Note that a checkpoint was written. Check first if the save was not requested in advance (best model).

        Args:
            model: The model now.
            step: Optimizer steps so far.
            checkpoint: Name of the checkpoint's folder.
        """
        stop = self._check(model, step)
        self._save_owed = False
        if self._watching and self._state.step == step:
            self._guarded(step, lambda: self._state.mark(checkpoint, save=self._ranks.main))
            self._reporting.note_unwritten(step)
        self._agree()
        return Requests(stop=stop)

    def end(self, step: int) -> None:
        """Let the guard go, close the record and print the summary.

        Raises:
            WeightWatchError: See ``before_step``.
        """
        self.under_way = False
        left: list[Reading | None] = []
        fault = attempt(lambda: left.append(self._guarding.end(step)))
        self._close(step, left[0] if left else None)
        raise_any(fault)
        self._agree()

    def release(self) -> None:
        """Let the guard go: the model begins another run."""
        self._guarding.release()

    def _close(self, step: int, left: Reading | None = None) -> None:
        """Close the record and print the summary.

        Args:
            step: Optimizer steps so far.
            left: The model as the guard leaves it, if that is not the newest reading.
        """
        self.under_way = False
        if self.last is not None and self._watching:
            self._state.note_guarded(self._guarding.account(0.0))
            outcome = Outcome(left or self.last, self._state.peaks, self.alerts, self._state.taken)
            self._reporting.call(step, lambda reporter: reporter.end(outcome))
            if self.history.waiting:
                _logger.error(
                    "weightwatch: %d lines of the record could not be written to %s, and are lost.",
                    self.history.waiting,
                    self.history.folder,
                )
        self._opening.folder.release()

    # Checks

    def _check(self, model: nn.Module, step: int) -> bool:
        """Measure, apply the rules, report. Return whether a process requests to stop."""
        if self._tried == step:
            return False
        self._tried = step
        raised: list[Alert] = []
        if self._watching:
            self._guarded(step, lambda: raised.extend(self._state.take(self._measured(self.monitor.view(model), step))))
            if self._state.step == step:
                self._report_check(raised)
        requests, guards = Requests.of(raised), self._guarding.arms(raised)
        # All processes act alike: if one alone saved, stopped or raised, the others would wait for ever.
        wanted = np.array([requests.save, requests.stop, guards], dtype=np.float64)
        save, stop, guards = self._ranks.add(wanted, self._faults.fatal) > 0
        self._guarding.arm(bool(guards))
        # With `save_strategy="best"` an evaluation in the same step resets should_save: the save is requested again.
        self._save_owed |= bool(save)
        return bool(stop)

    def _measured(self, view: ModelView, step: int) -> Reading:
        reading = self.monitor.read(view, step)
        return replace(reading, guard=self._guarding.account(reading.update_norm))

    def _report_check(self, raised: Sequence[Alert]) -> None:
        reading, firing = self.last, self._state.rules.engine.firing
        if reading is not None:
            self._reporting.call(reading.step, lambda reporter: reporter.check(reading, raised, firing))

    def _guard_failed(self, step: int, fault: BaseException | None, alert: Alert, *, stops: bool) -> None:
        """Record that the guard is off. If training is stopped, nothing is recorded after that."""
        if self._state.add(alert):
            self._reporting.call(step, lambda reporter: reporter.alerts([alert]))
        if fault is not None:
            self._faults.tell(step, fault, what="guard", outcome="" if stops else "Training goes on unguarded.")
        if stops and self.under_way:
            self._close(step)

    # Start of a run

    def _begin(
        self, model: nn.Module, step: int, checkpoint: str | None, again: bool, run: str | None
    ) -> tuple[ModelView, list[Alert]]:
        """Return the view of the model, and the alerts that a resumed run raises."""
        self._ranks.agreed(self._open_channels)
        view = self._ranks.agreed(lambda: self.monitor.view(model))
        fresh = not (step or again)
        self._opening.claim(step, run, fresh=fresh)
        fix = self._opening.establish if fresh else self._opening.restore
        self.monitor.reference = fix(view, self.monitor.reference)
        if step:
            self.monitor.validate(view)
            return view, self._resume(step, checkpoint)
        reading = self._measured(view, 0)
        self._open(0)
        self._report_check(self._state.take(reading))
        self._ranks.agreed(self._faults.raise_fatal)
        return view, []

    def _open_channels(self) -> None:
        if self._ranks.main:
            self._reporting.open_channels(self.config)

    def _open(self, step: int) -> None:
        """Open the files, and set aside what they have of later steps."""
        if self._ranks.main:
            events = self._events.with_name(self._events.name + self._opening.folder.suffix)
            self._reporting.add_own(self.config, events)
        self._opening.open(step, self.config, self._setup)
        self._reporting.begin(Run(self.monitor.directions, self.config, step))

    def _resume(self, step: int, checkpoint: str | None) -> list[Alert]:
        """Restore the state from the record. Return the alerts that fire now and were not recorded."""
        self._open(step)
        news, self._state.shared = self._ranks.from_main(lambda: (self._recall(step, checkpoint), self._state.shared))
        self._reporting.call(step, lambda reporter: reporter.alerts(news))
        self._ranks.agreed(self._faults.raise_fatal)
        return news

    def _recall(self, step: int, checkpoint: str | None) -> list[Alert]:
        try:
            news = self._state.recall(step, checkpoint)
        except OSError as error:
            self._faults.note(step, error, what="read the record of", outcome="The rules begin anew.")
            return []
        if self.last is not None and self._state.step != step:
            _logger.warning(
                "weightwatch: The record in %s has no reading of step %d: the newest before it is of step %d. Rules go "
                "on from there.",
                self.history.folder,
                step,
                self._state.step,
            )
        return news

    # Faults

    def _guarded(self, step: int, act: Callable[[], None]) -> None:
        """Run a part of the monitoring that may fail."""
        error = attempt(act)
        if error is not None and self._guarding.under_way:
            outcome = "Training goes on, guarded as before; whether the guard is bypassed is not known meanwhile."
            self._faults.note(step, error, outcome=outcome)
        elif error is not None:
            self._faults.note(step, error)

    def _agree(self) -> None:
        """Raise a fault that was kept, on all processes."""
        self._ranks.add(np.zeros(1), self._faults.fatal)
