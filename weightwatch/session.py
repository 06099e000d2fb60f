"""One watched run: checks are measured, recorded, drawn and judged here, whatever trainer drives them."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from torch import nn

from weightwatch.config import Config
from weightwatch.monitor import Monitor
from weightwatch.reading.reading import Reading
from weightwatch.record.history import History
from weightwatch.report.tensorboard import METRICS, Dashboard
from weightwatch.report.terminal import summary
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import Judge
from weightwatch.update.sharding.ranks import ALONE, Ranks
from weightwatch.update.theta0 import establish, restore

_logger = logging.getLogger("weightwatch")
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


class Session:
    """The monitoring of one run.

    Args:
        monitor: What measures.
        config: Rules and outputs.
        folder: ``<output_dir>/weightwatch``.
        events: TensorBoard run folder.
        ranks: The processes of the run. The main one records; all measure and judge, so that they act alike.

    Attributes:
        readings: All readings of the run so far, those before a resume included.
        alerts: All alerts so far.
    """

    def __init__(self, monitor: Monitor, config: Config, folder: Path, events: Path, *, ranks: Ranks = ALONE) -> None:
        self.monitor = monitor
        self.config = config
        self.history = History(folder)
        self.readings: list[Reading] = []
        self.alerts: list[Alert] = []
        self._judge = Judge.of(config.rules)
        self._events = events
        self._dashboard: Dashboard | None = None
        self._ranks = ranks

    def begin(self, model: nn.Module, step: int, *, again: bool = False) -> list[Alert]:
        """Fix θ₀, or find it again, and make sure that everything can be measured and judged.

        Args:
            model: The model that will be trained.
            step: 0 for a new run, else the step of the checkpoint that training resumes from.
            again: The trainer begins once more, with the weights that a first attempt has left: θ₀ stays what it was.

        Returns:
            Alerts of a resumed run that fire and were not recorded before: of rules that are new, or stricter now.

        Raises:
            WeightWatchError: See ``Monitor.check``, ``Judge.judge`` and ``baseline.restore``.
        """
        folder = self.history.folder
        if step or again:
            self.monitor.reference = restore(model, folder, self.monitor.reference, self._ranks)
        else:
            self.monitor.reference = establish(model, folder, self.monitor.reference, self._ranks)
        self.monitor.check(model)
        self.readings = self._ranks.from_main(lambda: self._opened(step))
        stands = self._ranks.from_main(lambda: self._stands(checkpoint_name(step)))
        if self.checked == step and stands:
            self.mark(checkpoint_name(step))  # a run that was killed between a checkpoint and its note
        self._judge, self.alerts = self._replay(self.readings)
        if not step:
            self.record(self.check(model, 0))
            return []
        known = {(alert.alert, alert.step) for alert in self._ranks.from_main(self.history.alerts)}
        news = [alert for alert in self.alerts if alert.alert in self.firing and (alert.alert, alert.step) not in known]
        if self._ranks.main:
            self._log(news)
            self._announce(news)
        return news

    def check(self, model: nn.Module, step: int) -> list[Alert]:
        """Measure and judge. What comes of it is on disk only after ``record``: a full disk keeps no alert from acting.

        Args:
            model: The model now.
            step: Optimizer steps so far.

        Returns:
            The alerts that this check raised or resolved.

        Raises:
            WeightWatchError: See ``Monitor.measure``.
        """
        reading = self.monitor.measure(model, step=step).without_tensors()
        self._judge, raised = self._judge.judge(reading)
        self.readings.append(reading)
        raised = [self._with_standing_checkpoint(alert) for alert in raised]
        self.alerts.extend(raised)
        return raised

    def record(self, raised: list[Alert]) -> None:
        """Write down the last check: its reading, and the alerts that it raised or resolved."""
        if not self._ranks.main:
            return
        self._log(raised)
        self.history.add_reading(self.readings[-1])
        if self._dashboard is not None:
            self._dashboard.show(self.readings[-1], self._judge.firing)
        self._announce(raised)

    def mark(self, checkpoint: str) -> None:
        """Note that a checkpoint holds the weights of the last reading, once it has been written."""
        self.readings[-1] = replace(self.readings[-1], checkpoint=checkpoint)
        self._judge, _ = self._replay(self.readings)
        if self._ranks.main:
            self.history.amend(self.readings[-1])

    @property
    def checked(self) -> int:
        """Step of the last reading; -1 before the first."""
        return self.readings[-1].step if self.readings else -1

    @property
    def firing(self) -> tuple[str, ...]:
        """Names of the rules that fire now."""
        return tuple(name for name, fires in self._judge.firing.items() if fires)

    def fault(self, step: int, error: Exception) -> None:
        """Record a fault of the monitoring."""
        if self._ranks.main:
            self.history.add_error(step, error)

    def end(self) -> None:
        """Close the files and print the summary."""
        if self._dashboard is not None:
            self._dashboard.close()
        if self._ranks.main and self.config.summary and self.readings:
            Console().print(summary(self.readings, self.alerts))

    def _log(self, raised: list[Alert]) -> None:
        for alert in raised:
            if "log" in alert.actions or alert.state == "resolved":
                level = _LEVELS[alert.severity] if alert.state == "firing" else logging.INFO
                _logger.log(level, "weightwatch: %s", alert.describe())

    def _announce(self, raised: list[Alert]) -> None:
        for alert in raised:
            self.history.add_alert(alert)
            if self._dashboard is not None:
                self._dashboard.announce(alert)

    def _opened(self, step: int) -> list[Reading]:
        """Open the files, and return the readings that the run goes on from."""
        self.history.rewind(step if step else -1)
        self.history.folder.mkdir(parents=True, exist_ok=True)
        (self.history.folder / "config.yaml").write_text(self.config.to_yaml())
        if self.config.tensorboard:
            names = [direction.name for direction in self.monitor.directions]
            controlled = any(direction.card.kind == "control" for direction in self.monitor.directions)
            metrics = [metric for metric in METRICS if metric != "z" or controlled]
            first = step + 1 if step else 0
            self._dashboard = Dashboard(self._events, names, metrics=metrics, first_step=first)
        return [reading for reading in self.history.readings() if reading.step <= step] if step else []

    def _replay(self, readings: Sequence[Reading]) -> tuple[Judge, list[Alert]]:
        """Judge a history, from where on it holds all directions: a resumed run may watch more than it did before."""
        watched = {direction.name for direction in self.monitor.directions}
        return Judge.of(self.config.rules).replay(r for r in readings if watched <= r.directions.keys())

    def _with_standing_checkpoint(self, alert: Alert) -> Alert:
        """Name no checkpoint that the trainer has deleted since (``save_total_limit``), but the newest that is left."""
        if alert.last_clean is None or self._stands(alert.last_clean):
            return alert
        left = [r if self._stands(r.checkpoint) else replace(r, checkpoint=None) for r in self.readings]
        _, alerts = self._replay(left)
        same = (other for other in alerts if replace(other, last_clean=alert.last_clean) == alert)
        return next(same, replace(alert, last_clean=None))

    def _stands(self, checkpoint: str | None) -> bool:
        return checkpoint is not None and (self.history.folder.parent / checkpoint).is_dir()


def checkpoint_name(step: int) -> str:
    """Return the folder name that Hugging Face's Trainer gives to the checkpoint of a step."""
    return f"checkpoint-{step}"
