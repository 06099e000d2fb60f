"""One watched run, whatever trainer drives it: when a check is due, what follows from it, and what a fault may do."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from weightwatch.config import Config
from weightwatch.monitor import Monitor
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.record.recorder import Recorder
from weightwatch.record.run_state import RunState
from weightwatch.report.base import Outcome, Reporter, Run
from weightwatch.report.log import Log
from weightwatch.report.tensorboard import TensorBoard
from weightwatch.report.terminal import Summary
from weightwatch.rules.alert import Alert
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.update.theta0 import establish, restore
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.atomic import write_text

_logger = logging.getLogger("weightwatch")


@dataclass(frozen=True)
class Wishes:
    """What the alerts of a check ask of the trainer."""

    save: bool = False
    """Write a checkpoint."""
    stop: bool = False
    """End the training."""

    @classmethod
    def of(cls, raised: Iterable[Alert]) -> "Wishes":
        """Return what alerts ask for."""
        actions = {action for alert in raised for action in alert.actions}
        return cls("save" in actions, "stop" in actions)


class Session:
    """The monitoring of one run.

    A trainer's callback hands its events on: ``begin``, ``step_end``, ``saved``, ``end``. Where several processes train
    together all of them call each method; what one of them wishes is done by all.

    Args:
        monitor: What measures.
        config: The settings.
        folder: ``<output_dir>/weightwatch``.
        events: TensorBoard run folder.
        ranks: The processes of the run. All measure and apply the rules, so that they act alike; the main one reports.
        beside: Further reporters, which every process calls.

    Attributes:
        under_way: Training has begun and has not ended.
    """

    def __init__(
        self,
        monitor: Monitor,
        config: Config,
        folder: Path,
        events: Path,
        *,
        ranks: Ranks = ALONE,
        beside: Sequence[Reporter] = (),
    ) -> None:
        self.monitor, self.config, self.history = monitor, config, History(folder)
        self.under_way = False
        self._state = RunState(config.rules, [direction.name for direction in monitor.directions], self.history)
        self._ranks = ranks
        self._reporters: list[Reporter] = [*beside]
        if ranks.main:
            of_config = [TensorBoard(events)] * config.tensorboard + [Summary()] * config.summary
            self._reporters += [Log(), Recorder(self.history), *of_config]
        self._watching, self._tried, self._save_owed = True, -1, False
        self._told: set[str] = set()

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

    # What the trainer tells.

    def begin(self, model: nn.Module, step: int, *, checkpoint: str | None = None, again: bool = False) -> Wishes:
        """Fix θ₀, or find it again, and make sure that everything can be measured and every rule applied.

        Args:
            model: The model that will be trained.
            step: 0 for a new run, else the step that training resumes from.
            checkpoint: Name of the checkpoint that training resumes from.
            again: The trainer begins once more, with the weights that a first attempt has left: θ₀ stays what it was.

        Returns:
            What alerts of a resumed run ask for that were not recorded before: of rules that are new, or stricter now.

        Raises:
            WeightWatchError: See ``Monitor.validate``, ``Engine.apply`` and ``theta0.restore``. Any other fault leaves
                the run unwatched, unless ``on_error: raise`` is set.
        """
        self._tried = step
        try:
            wishes = Wishes.of(self._begin(model, step, checkpoint, again))
        except WeightWatchError:
            raise
        except Exception as error:
            self._watching = False
            self._fault(step, error, "The training goes on unwatched.")
            return Wishes()
        self.under_way, self._save_owed = True, wishes.save
        return wishes

    def step_end(self, model: nn.Module, step: int, *, saves: bool, stops: bool) -> Wishes:
        """Check if it is due, if a checkpoint follows, or if the training ends; at most once a step.

        Args:
            model: The model now.
            step: Optimizer steps so far.
            saves: A checkpoint will be written at this step.
            stops: The training ends at this step.
        """
        if step % self.config.every == 0 or saves or self._save_owed or stops:
            stops |= self._check(model, step)
        return Wishes(self._save_owed, stops)

    def saved(self, model: nn.Module, step: int, checkpoint: str) -> Wishes:
        """Note that a checkpoint was written; check first if nothing has announced it (best model).

        Args:
            model: The model now.
            step: Optimizer steps so far.
            checkpoint: Name of the checkpoint's folder.
        """
        stop = self._check(model, step)
        self._save_owed = False
        if self._watching and self._state.step == step:
            self._guarded(step, lambda: self._mark(checkpoint))
        return Wishes(stop=stop)

    def end(self, step: int) -> None:
        """Close the record and print the summary."""
        self.under_way = False
        if self.last is not None and self._watching:
            outcome = Outcome(self.last, self._state.peaks, self.alerts)
            self._tell(step, lambda reporter: reporter.end(outcome))

    # A check.

    def _check(self, model: nn.Module, step: int) -> bool:
        """Measure, apply the rules, report. Return whether some process wants the training to stop."""
        if self._tried == step:
            return False
        self._tried = step
        raised: list[Alert] = []
        if self._watching:
            self._guarded(step, lambda: raised.extend(self._measured(model, step)))
            if self.last is not None and self.last.step == step:
                self._report(self.last, raised)
        wishes = Wishes.of(raised)
        # If one process alone saved or stopped, the others would wait for ever.
        save, stop = self._ranks.add(np.array([float(wishes.save), float(wishes.stop)])) > 0
        # Under `save_strategy="best"` an evaluation in this step takes the save back: then it is made up for.
        self._save_owed |= bool(save)
        return bool(stop)

    def _measured(self, model: nn.Module, step: int) -> list[Alert]:
        return self._state.take(self.monitor.read(self.monitor.view(model), step))

    def _report(self, reading: Reading, raised: Sequence[Alert]) -> None:
        firing = self._state.rules.engine.firing
        self._tell(reading.step, lambda reporter: reporter.check(reading, raised, firing))

    def _mark(self, checkpoint: str) -> None:
        self._state.mark(checkpoint)
        if self._ranks.main:
            self._state.save()

    # The beginning.

    def _begin(self, model: nn.Module, step: int, checkpoint: str | None, again: bool) -> list[Alert]:
        view = self._ranks.agreed(lambda: self.monitor.view(model))
        fix = restore if step or again else establish
        self.monitor.reference = fix(view, self.history.folder, self.monitor.reference)
        if step:
            self.monitor.validate(view)
            return self._resume(step, checkpoint)
        reading = self.monitor.read(view, 0)
        self._open(0)
        self._report(reading, self._state.take(reading))
        return []

    def _open(self, step: int) -> None:
        """Open the files, and set aside what they hold of later steps."""
        self._ranks.from_main(lambda: self._prepare(step))
        run = Run(self.monitor.directions, self.config, step)
        unopened = self._tell(step, lambda reporter: reporter.begin(run))
        self._reporters = [reporter for reporter in self._reporters if reporter not in unopened]

    def _prepare(self, step: int) -> None:
        self.history.rewind(step if step else -1)
        self.history.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.history.folder / "config.yaml", self.config.to_yaml())

    def _resume(self, step: int, checkpoint: str | None) -> list[Alert]:
        """Go on from the record, and return the alerts that fire now and were not recorded."""
        self._open(step)
        found = self._ranks.from_main(lambda: (self._state.recall(step, checkpoint), self._state.shared))
        news, self._state.shared = found
        self._tell(step, lambda reporter: reporter.alerts(news))
        return news

    # Faults.

    def _tell(self, step: int, act: Callable[[Reporter], None]) -> list[Reporter]:
        """Call every reporter, whatever the others do, and return those that failed."""
        failed: dict[Reporter, Exception] = {}
        for reporter in self._reporters:
            try:
                act(reporter)
            except Exception as error:
                failed[reporter] = error
        for fault in failed.values():
            self._fault(step, fault, what="report")
        return list(failed)

    def _guarded(self, step: int, act: Callable[[], None]) -> None:
        """Run a part of the monitoring; a fault in it ends the training only if the user asked for that."""
        try:
            act()
        except Exception as error:
            self._fault(step, error)

    def _fault(
        self,
        step: int,
        error: Exception,
        outcome: str = "The training goes on; this is said once.",
        what: str = "check",
    ) -> None:
        """Log a fault once, and record it each time.

        Raises:
            Exception: The fault itself under ``on_error: raise``.
        """
        if self.config.on_error == "raise":
            raise error
        told = str(error) in self._told
        self._told.add(str(error))
        if not told:
            trace = not isinstance(error, WeightWatchError)
            _logger.error("weightwatch could not %s step %d: %s. %s", what, step, error, outcome, exc_info=trace)
        try:
            if self._ranks.main:
                self.history.add_error(step, error)
        except OSError as unwritten:
            if not told:
                _logger.error("weightwatch could not record that either: %s.", unwritten)
