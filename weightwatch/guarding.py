"""The guard of one run: when it is on, and what a fault in it does."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import numpy as np
from torch import nn

from weightwatch.config import Config
from weightwatch.faults import attempt, raise_any
from weightwatch.guard.guard import Guard
from weightwatch.monitor import Monitor
from weightwatch.reading.reading import Guarded, Reading
from weightwatch.rules.alert import Alert
from weightwatch.update.model_view import ModelView
from weightwatch.update.sharding.ranks import Ranks
from weightwatch.vectors.errors import WeightWatchError, text_of


class Failed(Protocol):
    """Called once when the guard fails, before the training is stopped or goes on."""

    def __call__(self, step: int, fault: BaseException | None, alert: Alert, *, stops: bool) -> None:
        """Record the failure.

        Args:
            step: The step.
            fault: The fault; None on a process that has none itself.
            alert: The alert that says so.
            stops: Whether the training is stopped.
        """


class Guarding:
    """Calls the guard of a run, and stops the training or goes on without it when it fails. There may be no guard.

    In distributed training every process calls each method. The guard is on, and fails, on all processes or on none:
    replicas that are guarded differently would drift apart.

    Args:
        monitor: Watches the directions and the witness.
        config: The settings.
        ranks: The processes of the run.
        failed: Called when the guard fails.
    """

    def __init__(self, monitor: Monitor, config: Config, ranks: Ranks, failed: Failed) -> None:
        self._guard = Guard(monitor, config.guard) if config.guard is not None else None
        self._monitor, self._ranks, self._failed = monitor, ranks, failed
        self._stops, self._off = config.on_guard_error == "stop", False
        self._model: nn.Module | None = None
        self._called = 0

    @property
    def required(self) -> bool:
        """Whether the training must not go on without the guard."""
        return self._guard is not None and self._stops

    @property
    def under_way(self) -> bool:
        """Whether there is a guard that has not failed."""
        return self._guard is not None and not self._off

    @property
    def armed(self) -> bool:
        """Whether the guard is switched on."""
        return self._guard is not None and self._guard.armed

    def begin(
        self, step: int, model: nn.Module, optimizer: Any, view: ModelView | None, alerts: Iterable[Alert]
    ) -> None:
        """Begin with a model.

        Args:
            step: The step that training begins with, or resumes from.
            model: The model.
            optimizer: Its optimizer.
            view: A view of the model now.
            alerts: All alerts so far: those of a resumed run may have armed the guard.

        Raises:
            WeightWatchError: See ``Guard.begin``; or an unforeseen fault, unless ``on_guard_error: continue`` is set.
        """
        guard = self._guard
        if guard is None:
            return
        self._model, self._called = model, step
        self.arm(self.arms(alerts))
        fault = attempt(lambda: guard.begin(model, optimizer, view))
        guard.pause()
        fault = attempt(lambda: self._ranks.agreed(partial(raise_any, fault)))
        if fault is not None:
            guard.release()
            if isinstance(fault, WeightWatchError):
                raise fault
            self._fail(step, fault, self._ranks.count)

    def arms(self, alerts: Iterable[Alert]) -> bool:
        """Whether one of some alerts switches the guard on."""
        return self.under_way and any("guard" in alert.actions for alert in alerts)

    def arm(self, wanted: bool) -> None:
        """Switch the guard on, from the next step on, if a process wants it."""
        if wanted and self._guard is not None and not self._off:
            self._guard.arm()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Let the guard add to the forward passes in here, and to no other."""
        with self._guard.adding() if self._guard is not None else nullcontext():
            yield

    def before_step(self, step: int) -> None:
        """Let the guard change the gradients before the optimizer's step.

        Raises:
            WeightWatchError: The guard failed, and the training is not to go on without it.
        """
        if self._guard is not None and self._guard.settings.mode == "gradient":
            self._called = step
            self._act(step, self._guard.before_step)

    def after_step(self, step: int) -> None:
        """Let the guard take back what the optimizer's step has moved along its directions.

        Raises:
            WeightWatchError: See ``before_step``.
        """
        if self._guard is not None and self._guard.settings.mode != "gradient":
            self._called = step
            self._act(step, self._guard.after_step)

    def step_end(self, step: int) -> None:
        """Make sure that the guard was called in a step.

        Raises:
            WeightWatchError: See ``before_step``.
        """
        if self._guard is None or self._off or not self._guard.armed or self._called >= step:
            return
        event = "on_pre_optimizer_step" if self._guard.settings.mode == "gradient" else "on_optimizer_step"
        missed = WeightWatchError(
            f"it was not called between step {self._called} and step {step}: the trainer sends no `{event}` to its "
            "callbacks. Call `weightwatch.guard.Guard` in its loop"
        )
        self._fail(step, missed, self._ranks.count)

    def account(self, update_norm: float) -> Guarded | None:
        """Return what the guard has done since the last call; None without a guard.

        Args:
            update_norm: ‖τ‖ now.
        """
        return self._guard.account(update_norm) if self._guard is not None else None

    def end(self, step: int) -> Reading | None:
        """Let the guard take back once more, with ``mode: checkpoint``, and go.

        Returns:
            A reading of the model that it leaves, if it has changed it now; else None.

        Raises:
            WeightWatchError: See ``before_step``.
        """
        guard, model, self._model = self._guard, self._model, None
        if guard is None or model is None:
            return None
        once = guard.settings.mode == "checkpoint" and guard.armed and not self._off
        self._act(step, guard.end)
        guard.release()
        if not once or self._off:
            return None
        return self._monitor.read(self._monitor.view(model), step)

    def release(self) -> None:
        """Leave the model as it is, and do no more."""
        self._model, self._off = None, True
        if self._guard is not None:
            self._guard.release()

    def _act(self, step: int, act: Callable[[], None]) -> None:
        if self._guard is None or self._off or not self._guard.armed:
            return
        fault = attempt(act)
        failed = int(self._ranks.add(np.array([float(fault is not None)]))[0])
        if failed:
            self._fail(step, fault, failed)

    def _fail(self, step: int, fault: BaseException | None, failed: int) -> None:
        """Switch the guard off. If it failed on some processes only, the training can't go on: their weights differ."""
        assert self._guard is not None
        self._off = True
        attempt(self._guard.release)
        reason = text_of(fault).rstrip(".") if fault is not None else "see the log of another process"
        alone = failed < self._ranks.count
        stops = self._stops or alone
        outcome = "Training is stopped" if stops else "Training goes on unguarded"
        alert = Alert.of_guard(
            self._guard.directions[0].name, step, f"the guard failed: {reason}. {outcome}.", told=not stops
        )
        self._failed(step, fault, alert, stops=stops)
        if alone and not self._stops:
            raise WeightWatchError(
                f"The guard failed at step {step} on {failed} of {self._ranks.count} processes: {reason}. Training is "
                "stopped, since their weights may differ now. Go back to the last checkpoint."
            ) from fault
        if stops:
            raise WeightWatchError(
                f"The guard failed at step {step}: {reason}. Training is stopped, since it would go on unguarded. Set "
                "`on_guard_error: continue` to allow that."
            ) from fault
