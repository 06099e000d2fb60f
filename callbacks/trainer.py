"""The drop-in callback for Hugging Face's Trainer and every TRL trainer."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from weightwatch.config import Config
from weightwatch.monitor import Monitor, Watched, load_all
from weightwatch.report.tensorboard import scalars
from weightwatch.rules.engine import require
from weightwatch.session import Session, checkpoint_name
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError

_logger = logging.getLogger("weightwatch")


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
        directions: Watched | Sequence[Watched] | None = None,
        *,
        config: Config | Mapping[str, Any] | str | Path | None = None,
    ) -> None:
        self.config = Config.load(config)
        watched = load_all(directions) or load_all(self.config.directions)
        self._directions = [*watched, *(control.as_control() for control in load_all(self.config.controls))]
        for direction in self._directions:
            behaves = (
                direction.card.kind == "behaviour"
            )  # a control need not have been checked, but must not have failed
            if direction.card.doubt is not None and (behaves or direction.card.validation is not None):
                _logger.warning(
                    "weightwatch: direction %r is not validated: %s. What it reads may mean something else; check it "
                    "with `weightwatch show --check`.",
                    direction.name,
                    direction.card.doubt,
                )
        if directions:
            named = [directions] if isinstance(directions, Direction | str | Path) else directions
            titles = [one.name if isinstance(one, Direction) else str(one) for one in named]
            self.config = self.config.model_copy(update={"directions": titles})
        self._monitor()
        require(self.config.rules, self._directions)
        self.session: Session | None = None
        self._pending: dict[str, float] = {}
        self._told: set[str] = set()
        self._under_way = False
        self._tried = -1
        self._save_owed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fix θ₀ and make sure that every direction can be measured, before the first step."""
        # The state is made anew for each training and shared by all callbacks.
        if vars(state).setdefault("watched_by", self) is not self:
            raise WeightWatchError("The trainer has two WeightWatchCallbacks. Name all directions in one of them.")
        output = Path(args.output_dir)
        self.session = Session(
            self._monitor(),
            self.config,
            output / "weightwatch",
            _event_folder(output),
            ranks=Ranks.world(),
        )
        self._tried, self._save_owed = state.global_step, False
        # Out of memory, the trainer begins again with smaller batches, but with the weights as they are by then.
        again, self._under_way = self._under_way and args.auto_find_batch_size, False
        try:
            raised = self.session.begin(kwargs["model"], state.global_step, again=again)
        except WeightWatchError:
            raise
        except Exception as error:
            self._fault(state.global_step, error, "The training goes on unwatched.")
            self.session = None
        else:
            self._under_way = True
            self._save_owed = any("save" in alert.actions for alert in raised)
            control.should_training_stop |= any("stop" in alert.actions for alert in raised)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check when it is due, and when a checkpoint follows or the training ends."""
        control.should_save |= self._save_owed
        due = state.global_step % self.config.every == 0
        if due or control.should_save or control.should_training_stop:
            self._check(state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check when a checkpoint follows, and at the end of a training that something else stopped."""
        control.should_save |= self._save_owed
        if control.should_save or control.should_training_stop:
            self._check(state, control, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that the reading belongs to the checkpoint; take it if nothing announced the saving (best model)."""
        session, step = self.session, state.global_step
        self._check(state, control, kwargs["model"])
        self._save_owed = control.should_save = False
        if session is not None and session.checked == step:
            self._guarded(step, lambda: session.mark(checkpoint_name(step)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the record and print the summary."""
        self._under_way = False
        if self.session is not None:
            self._guarded(state.global_step, self.session.end)

    def take_scalars(self) -> dict[str, float]:
        """Return the figures of the newest reading, as trackers show them; empty if they were taken already."""
        taken, self._pending = self._pending, {}
        return taken

    def _check(self, state: TrainerState, control: TrainerControl, model: nn.Module) -> None:
        session, step = self.session, state.global_step
        if self._tried == step:
            return
        self._tried = step
        wishes: set[str] = set()

        def act(session: Session) -> None:
            raised = session.check(model, step)
            wishes.update(action for alert in raised for action in alert.actions)
            self._pending = {f"weightwatch/{tag}": value for tag, value in scalars(session.readings[-1]).items()}
            session.record(raised)

        if session is not None:
            self._guarded(step, lambda: act(session))
        # What one process wants is done by all: if one alone stopped or saved, the others would wait for ever.
        save, stop = Ranks.world().add(np.array([float("save" in wishes), float("stop" in wishes)])) > 0
        # Under `save_strategy="best"` an evaluation in this step takes the save back: then it is made up for.
        self._save_owed |= bool(save)
        control.should_save |= bool(save)
        control.should_training_stop |= bool(stop)

    def _guarded(self, step: int, act: Callable[[], None]) -> None:
        """Run a part of the monitoring; a fault in it ends the training only if the user asked for that."""
        try:
            act()
        except Exception as error:
            self._fault(step, error)

    def _fault(self, step: int, error: Exception, outcome: str = "The training goes on; this is said once.") -> None:
        if self.config.on_error == "raise":
            raise error
        told = str(error) in self._told
        self._told.add(str(error))
        if not told:
            trace = not isinstance(error, WeightWatchError)
            _logger.error("weightwatch could not check step %d: %s. %s", step, error, outcome, exc_info=trace)
        if self.session is not None:
            try:
                self.session.fault(step, error)
            except OSError as unwritten:
                if not told:
                    _logger.error("weightwatch could not record that either: %s.", unwritten)

    def _monitor(self) -> Monitor:
        return Monitor(self._directions, reference=self.config.reference, ranks=Ranks.world())


def _event_folder(output: Path) -> Path:
    """Return the TensorBoard run folder: beside the trainer's own, with the run's name where several runs meet."""
    shared = os.environ.get("TENSORBOARD_LOGGING_DIR")
    return (
        Path(shared).expanduser() / f"{output.resolve().name}-weightwatch"
        if shared
        else output / "runs" / "weightwatch"
    )
