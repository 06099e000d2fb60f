"""The reporters of one run: all of them are called, even if others fail."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from weightwatch.config import Config
from weightwatch.faults import Faults, attempt
from weightwatch.record.journal import Journal
from weightwatch.report.base import Reporter, Run
from weightwatch.report.live import Live
from weightwatch.report.log import Log
from weightwatch.report.notifier import Notifier
from weightwatch.report.recorder import Recorder
from weightwatch.report.tensorboard import TensorBoard
from weightwatch.report.terminal import Summary


class Reporting:
    """Calls the reporters of one run, and notes their faults and what could not be written.

    Args:
        reporters: Further reporters. Those of ``add_own`` are called first, so the record waits for no network.
        history: The record of the run.
        faults: Takes the faults.
    """

    def __init__(self, reporters: Sequence[Reporter], history: Journal, faults: Faults) -> None:
        self._reporters, self._history, self._faults = [*reporters], history, faults
        self._notifiers: list[Notifier] = []

    def open_channels(self, config: Config) -> None:
        """Open the channels that alerts are sent over.

        Raises:
            WeightWatchError: One can't be opened: an environment variable or a program that it needs is missing.
        """
        self._notifiers = [Notifier(config.notify, self._history)] if config.notify else []

    def add_own(self, config: Config, events: Path) -> None:
        """Add the log, the record, and what the settings ask for.

        Args:
            config: The settings.
            events: TensorBoard run folder.
        """
        board = [TensorBoard(events, self._history)] * config.tensorboard
        terminal = [Live(), Summary(self._history.folder)] * config.summary
        self._reporters = [Log(), Recorder(self._history), *board, *terminal, *self._notifiers, *self._reporters]

    def begin(self, run: Run) -> None:
        """Begin with a run. Reporters that fail here are not called again."""
        unopened = self.call(run.step, lambda reporter: reporter.begin(run))
        self._reporters = [reporter for reporter in self._reporters if reporter not in unopened]

    def call(self, step: int, act: Callable[[Reporter], None]) -> list[Reporter]:
        """Call every reporter, and return those that failed."""
        failed: list[Reporter] = []
        for reporter in self._reporters:
            error = attempt(partial(act, reporter))
            if error is not None:
                failed.append(reporter)
                self._faults.note(step, error, what="report")
        self.note_unwritten(step)
        return failed

    def note_unwritten(self, step: int) -> None:
        """Note that a part of the record could not be written, if that is so."""
        if self._history.fault is not None:
            self._faults.note_unwritten(step, self._history.fault)
