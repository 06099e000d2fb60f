"""The drop-in callback for Hugging Face's Trainer and every TRL trainer."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from weightwatch.config import Config
from weightwatch.dashboard import scalars
from weightwatch.monitor import Monitor
from weightwatch.rules import require
from weightwatch.session import Session, checkpoint_name
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

_logger = logging.getLogger("weightwatch")

Watched = str | Path | Direction


class WeightWatchCallback(TrainerCallback):
    """Watches how far a training run moves the weights along behaviour directions.

    A check runs every ``config.every`` steps and at each checkpoint, before the checkpoint is written. Its reading goes
    to ``<output_dir>/weightwatch/readings.jsonl`` and to a TensorBoard run folder ``weightwatch`` under the log
    directory; alerts go to ``alerts.jsonl``. A resumed run keeps its θ₀, history and alerts.

    Args:
        directions: What to watch: a name, a path or a ``Direction``, or several. Default: those of ``config``.
        config: A YAML file's path, a dict or a ``Config``.

    Raises:
        WeightWatchError: Unknown or damaged direction, bad setting; at the start of training: a direction of another
            model, no overlap with what is trained, an update that can't be read exactly. After that no fault of the
            monitoring ends the training, unless ``on_error: raise`` is set.

    Example:
        ``SFTTrainer(..., callbacks=[WeightWatchCallback("evil", config="weightwatch.yaml")])``
    """

    def __init__(
        self,
        directions: Watched | Sequence[Watched] = (),
        *,
        config: Config | Mapping[str, Any] | str | Path | None = None,
    ) -> None:
        self.config = Config.load(config)
        wanted = [directions] if isinstance(directions, Watched) else list(directions)
        watched = [_loaded(direction) for direction in wanted or self.config.directions]
        controls = [_loaded(control).as_control() for control in self.config.controls]
        self._directions = [*watched, *controls]
        self._monitor()
        require(self.config.rules, self._directions)
        self.session: Session | None = None
        self._pending: dict[str, float] = {}
        self._told: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fix θ₀ and make sure that every direction can be measured, before the first step."""
        output = Path(args.output_dir)
        events = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or output / "runs") / "weightwatch"
        self.session = Session(
            self._monitor(), self.config, output / "weightwatch", events, main=state.is_world_process_zero
        )
        try:
            self.session.begin(kwargs["model"], state.global_step)
        except WeightWatchError:
            raise
        except Exception as error:
            self._fault(state.global_step, error)
            self.session = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check when it is due, and when a checkpoint follows or the training ends."""
        due = state.global_step % self.config.every == 0
        if due or control.should_save or control.should_training_stop:
            self._check(state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check when a checkpoint follows."""
        if control.should_save:
            self._check(state, control, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check a checkpoint whose saving nothing announced, such as that of the best model."""
        self._check(state, control, kwargs["model"], saved=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the record and print the summary."""
        if self.session is not None:
            self._guarded(state.global_step, self.session.end)

    def take_scalars(self) -> dict[str, float]:
        """Return the figures of the readings since the last call, as trackers show them; each is given out once."""
        taken, self._pending = self._pending, {}
        return taken

    def _check(self, state: TrainerState, control: TrainerControl, model: nn.Module, saved: bool = False) -> None:
        session, step = self.session, state.global_step
        if session is None:
            return
        name = checkpoint_name(step) if saved or control.should_save else None
        if session.checked == step:
            if name and session.readings[-1].checkpoint is None:
                self._guarded(step, lambda: session.mark(name))
            return

        def act() -> None:
            for alert in session.check(model, step, name):
                control.should_save |= "save" in alert.actions
                control.should_training_stop |= "stop" in alert.actions
            self._pending = {f"weightwatch/{tag}": value for tag, value in scalars(session.readings[-1]).items()}

        self._guarded(step, act)

    def _guarded(self, step: int, act: Callable[[], None]) -> None:
        """Run a part of the monitoring; a fault in it ends the training only if the user asked for that."""
        try:
            act()
        except Exception as error:
            self._fault(step, error)

    def _fault(self, step: int, error: Exception) -> None:
        if self.config.on_error == "raise":
            raise error
        if str(error) not in self._told:
            self._told.add(str(error))
            _logger.error(
                "weightwatch could not check step %d: %s. The training goes on; this is said once.",
                step,
                error,
                exc_info=not isinstance(error, WeightWatchError),
            )
        if self.session is not None:
            try:
                self.session.fault(step, error)
            except OSError as unwritten:
                _logger.error("weightwatch could not record that either: %s.", unwritten)

    def _monitor(self) -> Monitor:
        return Monitor(self._directions, reference=self.config.reference)


def _loaded(direction: Watched) -> Direction:
    return direction if isinstance(direction, Direction) else Direction.load(direction)
