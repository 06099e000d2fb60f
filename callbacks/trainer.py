"""The callback for Hugging Face's Trainer and every TRL trainer. It forwards their events to a session."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from traceback import walk_stack
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from weightwatch.callbacks.trackers import LogHistory, trackers
from weightwatch.config import Config
from weightwatch.monitor import Watched
from weightwatch.plan import Plan
from weightwatch.record.run_folder import STATE, carried
from weightwatch.report.base import Reporter
from weightwatch.report.tensorboard import event_folder
from weightwatch.requests import Requests
from weightwatch.session import Session
from weightwatch.setup import Training
from weightwatch.vectors.errors import WeightWatchError


class WeightWatchCallback(TrainerCallback):
    """Watches how far a training run moves the weights along behaviour directions.

    A check runs every ``config.every`` steps and at each checkpoint, before the checkpoint is written. Its reading goes
    to ``<output_dir>/weightwatch/readings.jsonl``, to a TensorBoard run folder ``weightwatch`` under the log directory,
    and as ``weightwatch/<direction>/<metric>`` to ``state.log_history`` and to every tracker that ``report_to`` names.
    Alerts go to ``alerts.jsonl`` and to the trackers. A resumed run keeps its θ₀, history and alerts.

    Args:
        directions: What to watch: a name, a path or a ``Direction``, or several. Default: those of ``config``.
        config: A YAML file's path, a dict or a ``Config``.

    Raises:
        WeightWatchError: Unknown or damaged direction, bad setting; at the start of training: a direction of another
            model, no overlap with what is trained, an update that can't be read exactly. After that no fault of the
            monitoring ends the training, unless ``on_error: raise`` is set.

    Example:
        >>> import torch
        >>> from weightwatch import Direction, WeightWatchCallback
        >>> evil = Direction.from_tensors({"model.layers.0.mlp.down_proj.weight": torch.ones(2, 2)}, name="evil")
        >>> rule = {"alert": "evil-drift", "direction": "evil", "above": 0.1}
        >>> callback = WeightWatchCallback(evil, config={"every": 100, "rules": [rule]})
        >>> callback.config.every, callback.config.rules[0].metric
        (100, 'reach_cosine')

        Then ``SFTTrainer(..., callbacks=[callback])``.
    """

    def __init__(
        self,
        directions: Watched | Sequence[Watched] | None = None,
        *,
        config: Config | Mapping[str, Any] | str | Path | None = None,
    ) -> None:
        self._plan = Plan.of(directions, config)
        self.config = self._plan.config
        self.session: Session | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fix θ₀ and make sure that every direction can be measured, before the first step."""
        # The state is created for each training and shared by all callbacks. It may be copied and pickled.
        if vars(state).setdefault("watched_by", id(self)) != id(self):
            raise WeightWatchError("The trainer has two WeightWatchCallbacks. Name all directions in one of them.")
        # Out of memory, the trainer begins again with smaller batches, but with the weights as they are by then.
        again = args.auto_find_batch_size and self.session is not None and self.session.under_way
        first = self.session if again else None
        run = first.run if first is not None else carried(state.stateful_callbacks)
        output, step = _output(args), state.global_step
        if self.session is not None:
            self.session.release()
        trainer = _trainer()
        reporters: list[Reporter] = [LogHistory(state)]
        if trainer is not None and state.is_world_process_zero:
            reporters += trackers(trainer, args, state, control, tensorboard=self.config.tensorboard)
        self.session = self._plan.session(output / "weightwatch", event_folder(output), *reporters)
        optimizer = kwargs.get("optimizer")
        begun = self.session.begin(
            kwargs["model"],
            step,
            optimizer=optimizer,
            checkpoint=_name(step),
            first=first,
            run=run,
            training=_training(args, state, kwargs["model"]),
        )
        _apply(control, begun)
        if self.config.guard is not None and self.config.guard.mode == "preventative":
            _GuardedStep.of(trainer, self)
        if self.session.run:  # trainer_state.json of each checkpoint carries it
            state.stateful_callbacks[STATE] = {"run": self.session.run}

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the guard change the gradients."""
        if self.session is not None:
            self.session.before_step(state.global_step + 1)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the guard take back what the step has moved along its directions."""
        if self.session is not None:
            self.session.after_step(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check when it is due, and when a checkpoint follows or the training ends."""
        if self.session is not None:
            saves, stops = control.should_save, control.should_training_stop
            _apply(control, self.session.step_end(kwargs["model"], state.global_step, saves=saves, stops=stops))

    on_epoch_end = on_step_end  # where a checkpoint or the end of the training may be due as well

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note that the reading belongs to the checkpoint. Check first if the save was not requested in advance."""
        if self.session is not None:
            _apply(control, self.session.saved(kwargs["model"], state.global_step, _name(state.global_step)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the record and print the summary."""
        if self.session is not None:
            self.session.end(state.global_step)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: the directions and settings. A training belongs to the original."""
        return {**vars(self), "session": None}


class _GuardedStep:
    """A trainer's ``training_step`` in which the guard may add to the model, so that nothing stays whatever ends it.

    No event tells a callback that the training has ended with an exception. It can be pickled with the trainer.
    """

    def __init__(self, step: Callable[..., Any], callback: WeightWatchCallback) -> None:
        self._step, self._callback = step, callback

    @classmethod
    def of(cls, trainer: Trainer | None, callback: WeightWatchCallback) -> None:
        """Put it in the place of the trainer's own, once."""
        if trainer is not None:
            step = trainer.training_step
            own = step._step if isinstance(step, cls) else step
            vars(trainer)["training_step"] = cls(own, callback)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session = self._callback.session
        with session.forward() if session is not None else nullcontext():
            return self._step(*args, **kwargs)


def _training(args: TrainingArguments, state: TrainerState, model: Any) -> Training:
    """Return how a run is trained, as far as its figures depend on it."""
    adapters = getattr(model, "peft_config", None) or {}
    config = next(iter(adapters.values()), None)
    rank, alpha, modules = (getattr(config, name, None) for name in ("r", "lora_alpha", "target_modules"))
    trainer = _trainer()
    return Training(
        trainer=type(trainer).__name__ if trainer is not None else None,
        method=str(getattr(config.peft_type, "value", config.peft_type)) if config is not None else "full",
        rank=rank if isinstance(rank, int) else None,
        alpha=alpha if isinstance(alpha, int | float) else None,
        modules=_kinds(modules) if modules else None,
        optimizer=str(getattr(args.optim, "value", args.optim)),
        learning_rate=args.learning_rate,
        steps=state.max_steps,
        saves=(state.save_steps or None) if args.save_strategy == SaveStrategy.STEPS else None,
    )


def _kinds(modules: str | Iterable[str]) -> list[str]:
    """Return the names of adapted modules without their paths, which differ from layer to layer; a pattern as it is."""
    return [modules] if isinstance(modules, str) else sorted({name.rpartition(".")[2] for name in modules})


def _apply(control: TrainerControl, requests: Requests) -> None:
    control.should_save |= requests.save
    control.should_training_stop |= requests.stop


def _output(args: TrainingArguments) -> Path:
    """Return the folder in which the trainer puts its checkpoints, wherever the process goes later.

    In a hyper-parameter search it is the trial's, below ``output_dir``. No callback is told of the trial, so it is
    asked of the trainer that calls this one.
    """
    for trainer, names in _trainers():
        if names.get("trial") is not None:
            return Path(trainer._get_output_dir(names["trial"])).absolute()
    return Path(str(args.output_dir)).absolute()


def _trainer() -> Trainer | None:
    """Return the trainer that calls this callback, which no event names."""
    return next((trainer for trainer, _ in _trainers()), None)


def _trainers() -> Iterator[tuple[Trainer, Mapping[str, Any]]]:
    """Yield the trainers whose methods are under way, the innermost first, and the local names of each method."""
    for frame, _ in walk_stack(None):
        caller = frame.f_locals.get("self")
        if isinstance(caller, Trainer):
            yield caller, frame.f_locals


def _name(step: int) -> str:
    """Return the folder name that the Trainer gives to the checkpoint of a step."""
    return f"checkpoint-{step}"
