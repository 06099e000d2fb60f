"""A watched run, independent of the trainer: when to check, what to do then, and what a fault may do."""

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from weightwatch.config import Config
from weightwatch.monitor import Monitor
from weightwatch.reading.reading import Reading
from weightwatch.record.journal import Journal
from weightwatch.record.run_folder import RunFolder
from weightwatch.record.run_state import RunState
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.log import Log
from weightwatch.report.recorder import Recorder
from weightwatch.report.tensorboard import TensorBoard
from weightwatch.report.terminal import Summary
from weightwatch.rules.alert import Alert
from weightwatch.update.model_view import ModelView
from weightwatch.update.reference import Reference
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.update.snapshot import remove
from weightwatch.update.theta0 import establish, restore
from weightwatch.vectors.errors import WeightWatchError, interrupts, text_of
from weightwatch.vectors.weights.atomic import write_text

_logger = logging.getLogger("weightwatch")


@dataclass(frozen=True)
class Requests:
    """Actions that alerts request of the trainer."""

    save: bool = False
    """Write a checkpoint."""
    stop: bool = False
    """End the training."""

    @classmethod
    def of(cls, raised: Iterable[Alert]) -> "Requests":
        """Return what these alerts request."""
        actions = {action for alert in raised for action in alert.actions}
        return cls("save" in actions, "stop" in actions)


class Session:
    """The monitoring of one run.

    A trainer's callback forwards its events: ``begin``, ``step_end``, ``saved``, ``end``. In distributed training every
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
        self._folder, self._events = RunFolder(folder), events
        self._state = RunState(config.rules, [direction.name for direction in monitor.directions], self.history)
        self._ranks = ranks
        self._reporters: list[Reporter] = [*reporters]
        self._watching, self._tried, self._save_owed = True, -1, False
        self._told: set[str] = set()
        self._fatal: BaseException | None = None  # what `on_error: raise` raises once all processes know of it
        self._kept: TemporaryDirectory[str] | None = None  # θ₀, as long as the run's folder can't be written

    @property
    def run(self) -> str:
        """The run's id, which its checkpoints carry; empty before ``begin``."""
        return self._folder.run

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
        checkpoint: str | None = None,
        again: bool = False,
        run: str | None = None,
    ) -> Requests:
        """Record θ₀, or restore it, and make sure that everything can be measured and every rule applied.

        Args:
            model: The model that will be trained.
            step: 0 for a new run, else the step that training resumes from.
            checkpoint: Name of the checkpoint that training resumes from.
            again: Training restarts with the weights of a first attempt (out of memory): the θ₀ of that one is kept.
            run: The id of the run that goes on, if it is known.

        Returns:
            Actions of alerts that a resumed run raises on its history, because rules are new or stricter now.

        Raises:
            WeightWatchError: See ``Monitor.validate``, ``Engine.apply`` and ``theta0.restore``. After any other fault
                training continues without monitoring, unless ``on_error: raise`` is set.
        """
        self._tried = step
        raised: list[Alert] = []
        fault = _attempt(lambda: raised.extend(self._begin(model, step, checkpoint, again, run)))
        # A process that is alone with its fault would leave the others waiting at the next check.
        fault = _attempt(lambda: self._ranks.agreed(partial(_raise, fault)))
        if fault is not None:
            self._watching = False
            self._folder.release()
            if isinstance(fault, WeightWatchError) or self.config.on_error == "raise":
                raise fault
            self._fault(step, fault, outcome="Training continues without monitoring.")
            return Requests()
        requests = Requests.of(raised)
        self.under_way, self._save_owed = True, requests.save
        return requests

    def step_end(self, model: nn.Module, step: int, *, saves: bool, stops: bool) -> Requests:
        """Check if a check is due, if a checkpoint follows, or if training ends; at most once a step.

        Args:
            model: The model now.
            step: Optimizer steps so far.
            saves: Whether a checkpoint will be written at this step.
            stops: Whether training ends at this step.
        """
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
            self._write(step)
        self._agree()
        return Requests(stop=stop)

    def end(self, step: int) -> None:
        """Close the record and print the summary."""
        self.under_way = False
        if self.last is not None and self._watching:
            outcome = Outcome(self.last, self._state.peaks, self.alerts)
            self._report(step, lambda reporter: reporter.end(outcome))
            self._write(step)
            if self.history.waiting:
                _logger.error(
                    "weightwatch: %d lines of the record could not be written to %s, and are lost.",
                    self.history.waiting,
                    self.history.folder,
                )
        self._folder.release()
        self._agree()

    # Checks

    def _check(self, model: nn.Module, step: int) -> bool:
        """Measure, apply the rules, report. Return whether a process requests to stop."""
        if self._tried == step:
            return False
        self._tried = step
        raised: list[Alert] = []
        if self._watching:
            self._guarded(step, lambda: raised.extend(self._state.take(self._measure(model, step))))
            if self._state.step == step:
                self._report_check(raised)
        requests = Requests.of(raised)
        # All processes act alike: if one alone saved, stopped or raised, the others would wait for ever.
        save, stop = self._ranks.add(np.array([float(requests.save), float(requests.stop)]), self._fatal) > 0
        # With `save_strategy="best"` an evaluation in the same step resets should_save: the save is requested again.
        self._save_owed |= bool(save)
        return bool(stop)

    def _measure(self, model: nn.Module, step: int) -> Reading:
        return self.monitor.read(self.monitor.view(model), step)

    def _report_check(self, raised: Sequence[Alert]) -> None:
        reading, firing = self.last, self._state.rules.engine.firing
        if reading is not None:
            self._report(reading.step, lambda reporter: reporter.check(reading, raised, firing))
            self._write(reading.step)

    # Start of a run

    def _begin(self, model: nn.Module, step: int, checkpoint: str | None, again: bool, run: str | None) -> list[Alert]:
        view = self._ranks.agreed(lambda: self.monitor.view(model))
        fresh = not (step or again)
        start, claimed = self._claim(step, run, fresh)
        self.monitor.reference = self._establish(view, step, claimed) if fresh else self._restore(view, start)
        if step:
            self.monitor.validate(view)
            return self._resume(step, checkpoint)
        reading = self.monitor.read(view, 0)
        self._open(0)
        self._report_check(self._state.take(reading))
        self._ranks.agreed(self._raise_if_fatal)
        return []

    def _claim(self, step: int, run: str | None, fresh: bool) -> tuple[Path, bool]:
        """Take the run's folder. Return the folder that has its θ₀, and whether the folder can be written."""

        def claim() -> tuple[str, Path, Path, bool]:
            folder = self._folder
            unwritten = _attempt(lambda: self._take_folder(step, run, fresh))
            if unwritten is not None and not isinstance(unwritten, OSError):
                raise unwritten
            if unwritten is not None:
                self.history.opening.append(lambda: self._take_folder(step, run, fresh))
                self._unwritten(step, unwritten)
            return folder.run, folder.path, folder.start, unwritten is None

        run, path, start, claimed = self._ranks.from_main(claim)
        self._folder.run, self.history.folder = run, path
        return start, claimed

    def _take_folder(self, step: int, run: str | None, fresh: bool) -> None:
        self._folder.claim(step, run, fresh=fresh)
        self.history.folder, aside = self._folder.path, self._folder.aside
        if aside is not None and not any(aside.parent.glob("*/trainer_state.json")):
            remove(aside)  # no checkpoint is left to go on from, and a copy of θ₀ is as large as the model

    def _establish(self, view: ModelView, step: int, claimed: bool) -> Reference:
        """Fix θ₀ in the run's folder, or in a temporary one until that can be written."""
        given, fixed = self.monitor.reference, list[Reference]()
        if claimed:
            fault = _attempt(lambda: fixed.append(establish(view, self.history.folder, given)))
            if fixed:
                return fixed[0]
            if isinstance(fault, WeightWatchError):
                raise fault
        self._kept = TemporaryDirectory(prefix="weightwatch-", ignore_cleanup_errors=True)
        kept = Path(self._kept.name)
        reference = establish(view, kept, given)
        if claimed and fault is not None:
            self._unwritten(step, fault)
        self.history.opening.append(lambda: _copied(kept, self.history.folder))
        return reference

    def _restore(self, view: ModelView, start: Path) -> Reference:
        return restore(view, start, self.monitor.reference)

    def _open(self, step: int) -> None:
        """Open the files, and set aside what they have of later steps."""
        if self._ranks.main:
            of_config = [TensorBoard(self._own_events())] * self.config.tensorboard + [Summary()] * self.config.summary
            self._reporters += [Log(), Recorder(self.history), *of_config]
            self.history.end = step if step else -1
            self.history.opening.append(lambda: self._prepare(step))
            self.history.flush()
            self._write(step)
        run = Run(self.monitor.directions, self.config, step)
        unopened = self._report(step, lambda reporter: reporter.begin(run))
        self._reporters = [reporter for reporter in self._reporters if reporter not in unopened]

    def _own_events(self) -> Path:
        """Return the run folder of TensorBoard, which follows that of the record."""
        return self._events.with_name(self._events.name + self._folder.suffix)

    def _prepare(self, step: int) -> None:
        self.history.rewind(step if step else -1)
        self.history.end = float("inf")
        self.history.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.history.folder / "config.yaml", self.config.to_yaml())

    def _resume(self, step: int, checkpoint: str | None) -> list[Alert]:
        """Restore the state from the record. Return the alerts that fire now and were not recorded."""
        self._open(step)
        news, self._state.shared = self._ranks.from_main(lambda: (self._recall(step, checkpoint), self._state.shared))
        self._report(step, lambda reporter: reporter.alerts(news))
        self._write(step)
        self._ranks.agreed(self._raise_if_fatal)
        return news

    def _recall(self, step: int, checkpoint: str | None) -> list[Alert]:
        try:
            news = self._state.recall(step, checkpoint)
        except OSError as error:
            self._fault(step, error, what="read the record of", outcome="The rules begin anew.")
            return []
        if self.last is not None and self._state.step != step:
            _logger.warning(
                "weightwatch: The record in %s has no reading of step %d: its newest before it is of step %d. Rules "
                "go on from there.",
                self.history.folder,
                step,
                self._state.step,
            )
        return news

    # Faults

    def _report(self, step: int, act: Callable[[Reporter], None]) -> list[Reporter]:
        """Call every reporter, even if others fail, and return those that failed."""
        failed: list[Reporter] = []
        for reporter in self._reporters:
            error = _attempt(partial(act, reporter))
            if error is not None:
                failed.append(reporter)
                self._fault(step, error, what="report")
        return failed

    def _guarded(self, step: int, act: Callable[[], None]) -> None:
        """Run a part of the monitoring that may fail."""
        error = _attempt(act)
        if error is not None:
            self._fault(step, error)

    def _write(self, step: int) -> None:
        """Note that lines of the record could not be written."""
        if self.history.fault is not None:
            self._unwritten(step, self.history.fault)

    def _unwritten(self, step: int, error: BaseException) -> None:
        outcome = "Training and monitoring continue. What could not be written is kept, and written when it can be."
        self._fault(step, error, what="write the record of", outcome=outcome)

    def _fault(
        self,
        step: int,
        error: BaseException,
        *,
        what: str = "check",
        outcome: str = "Training continues. The same fault is not logged again; errors.jsonl has all of them.",
    ) -> None:
        """Log a fault once and record it each time; with ``on_error: raise``, keep it to be raised instead."""
        if self.config.on_error == "raise":
            self._fatal = self._fatal or error
            return
        text = text_of(error)
        told = text in self._told
        self._told.add(text)
        if not told:
            trace = None if isinstance(error, WeightWatchError | OSError) else error
            _attempt(
                lambda: _logger.error(
                    "weightwatch could not %s step %d: %s. %s", what, step, text, outcome, exc_info=trace
                )
            )
        unwritten = _attempt(lambda: self.history.add_error(step, error)) if self._ranks.main else None
        if unwritten is not None and not told:
            _attempt(lambda: _logger.error("weightwatch could not write errors.jsonl: %s.", text_of(unwritten)))

    def _agree(self) -> None:
        """Raise a fatal fault on all processes."""
        self._ranks.add(np.zeros(1), self._fatal)

    def _raise_if_fatal(self) -> None:
        _raise(self._fatal)


def _attempt(act: Callable[[], object]) -> BaseException | None:
    """Call a function and return its fault, if it has one. Ctrl-C is none."""
    try:
        act()
    except BaseException as error:
        if interrupts(error):
            raise
        return error
    return None


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def _copied(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
