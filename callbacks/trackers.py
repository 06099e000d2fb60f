"""The trackers that ``report_to`` names: each gets the figures of every check, and alerts in its own way."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    MLflowCallback,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
)

from weightwatch.config import Rule
from weightwatch.reading.reading import Reading
from weightwatch.report.base import Reporter, Run
from weightwatch.report.scalars import tracked
from weightwatch.report.tensorboard import literal
from weightwatch.rules.alert import Alert

_LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}
"""Level of an alert in Weights & Biases and in Trackio, by the severity of its rule."""


class LogHistory(Reporter):
    """Adds the figures of each check to ``trainer.state.log_history``.

    Args:
        state: The state of the training.
    """

    def __init__(self, state: TrainerState) -> None:
        self._state = state
        self._rules: Sequence[Rule] = ()

    def begin(self, run: Run) -> None:
        """Take the rules."""
        self._rules = run.config.rules

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Add the figures, with the step and the epoch, as the trainer does with its own."""
        figures = {"epoch": self._state.epoch, **tracked(reading, firing, self._rules), "step": reading.step}
        self._state.log_history.append(figures)


class Tracker(Reporter):
    """Passes the figures of each check to a tracker, as the trainer passes its logs.

    Only the tracker's own callback is called, so no other one (progress bar, early stopping) takes them for logs of the
    trainer. The step is that of the check, since the callback asks the trainer's state for it. This holds for every
    tracker that transformers integrates. Those with alerts have a subclass.

    Args:
        callback: The tracker's callback.
        args: The trainer's arguments.
        state: The state of the training.
        control: The trainer's control.
        model: The model, which a tracker that is not set up yet describes.
    """

    def __init__(
        self,
        callback: TrainerCallback,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any,
    ) -> None:
        self._callback, self._model = callback, model
        self._args, self._state, self._control = args, state, control
        self._rules: Sequence[Rule] = ()

    def begin(self, run: Run) -> None:
        """Take the rules."""
        self._rules = run.config.rules

    def check(self, reading: Reading, raised: Sequence[Alert], firing: Mapping[str, bool]) -> None:
        """Log the figures, then the alerts."""
        self.log(tracked(reading, firing, self._rules))
        self.alerts(raised)

    def alerts(self, raised: Sequence[Alert]) -> None:
        """Pass alerts on."""
        for alert in raised:
            self.alert(alert)

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log figures at the step of the training."""
        self._callback.on_log(self._args, self._state, self._control, model=self._model, logs=dict(figures))

    def alert(self, alert: Alert) -> None:
        """Pass an alert on, if the tracker has a way to show it. Whether a rule fires is a figure, too."""


class TensorBoard(Tracker):
    """Alerts as text in the trainer's own TensorBoard run."""

    def alert(self, alert: Alert) -> None:
        """Log the text."""
        self.log({f"weightwatch/alerts/{alert.alert}": literal(alert.describe())})


class WandB(Tracker):
    """Alerts by ``run.alert``, which sends them to Slack or by e-mail, as the user has set it in Weights & Biases.

    The figures go to the run itself: its callback would put them among the trainer's own, under ``train/``.
    """

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log figures over ``train/global_step``, which is the x axis of all charts."""
        import wandb

        if wandb.run is None:  # the callback comes after this one, and sets the run up
            super().log(figures)
        else:
            wandb.run.log({**figures, "train/global_step": self._state.global_step})

    def alert(self, alert: Alert) -> None:
        """Send an alert at the level of its severity, however shortly after another of the same rule."""
        import wandb

        if wandb.run is not None:
            soon = timedelta(milliseconds=1)  # 0 stands for the default, a minute
            wandb.run.alert(_title(alert)[:63], alert.describe(), level=_level(alert), wait_duration=soon)


class Trackio(Tracker):
    """Alerts by ``trackio.alert``, which shows them in the dashboard and posts them to webhooks."""

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log figures beside the trainer's, which are under ``train/``."""
        import trackio

        if trackio.context_vars.current_run.get() is None:
            super().log(figures)
        else:
            trackio.log({**figures, "train/global_step": self._state.global_step})

    def alert(self, alert: Alert) -> None:
        """Send an alert at the level of its severity, while there is a run."""
        import trackio

        if trackio.context_vars.current_run.get() is not None:
            trackio.alert(_title(alert), alert.describe(), level=trackio.AlertLevel[_level(alert)])


class MLflow(Tracker):
    """Alerts as tags of the run, one for each rule, by which runs can be searched."""

    def alert(self, alert: Alert) -> None:
        """Set the tag ``weightwatch.alerts.<rule>``. Without an active run MLflow would start another one."""
        import mlflow

        if mlflow.active_run() is not None:
            mlflow.set_tag(re.sub(r"[^0-9A-Za-z_. -]", "_", f"weightwatch.alerts.{alert.alert}"), alert.describe())


_OWN_WAY: dict[type[TrainerCallback], type[Tracker]] = {
    MLflowCallback: MLflow,
    TensorBoardCallback: TensorBoard,
    TrackioCallback: Trackio,
    WandbCallback: WandB,
}


def trackers(
    trainer: Trainer,
    args: TrainingArguments,
    state: TrainerState,
    control: TrainerControl,
    *,
    tensorboard: bool,
) -> list[Reporter]:
    """Return a reporter for each tracker of a trainer.

    Args:
        trainer: The trainer.
        args: Its arguments.
        state: The state of the training.
        control: The trainer's control.
        tensorboard: Whether TensorBoard has the figures already, in a run folder of their own.
    """
    integrated = tuple(INTEGRATION_TO_CALLBACK.values())
    found: list[Reporter] = []
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, integrated) and not (tensorboard and isinstance(callback, TensorBoardCallback)):
            kind = next((kind for theirs, kind in _OWN_WAY.items() if isinstance(callback, theirs)), Tracker)
            found.append(kind(callback, args, state, control, trainer.model))
    return found


def _title(alert: Alert) -> str:
    return f"weightwatch: {alert.alert}" + (" resolved" if alert.state == "resolved" else "")


def _level(alert: Alert) -> str:
    return "INFO" if alert.state == "resolved" else _LEVELS[alert.severity]
