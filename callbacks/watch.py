"""Attaching the monitor to a trainer that is already built."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightwatch.callbacks.trainer import WeightWatchCallback
from weightwatch.config import Config
from weightwatch.monitor import Watched
from weightwatch.vectors.errors import WeightWatchError


def watch(
    trainer: Any,
    directions: Watched | Sequence[Watched] | None = None,
    *,
    config: Config | Mapping[str, Any] | str | Path | None = None,
) -> WeightWatchCallback:
    """Watch a trainer, and show the figures in every tracker that its ``report_to`` names.

    A callback alone can't reach the trackers: what it adds to the logs in ``on_log`` comes too late for them. So the
    trainer's ``log`` is wrapped, and the figures of a check go with the next log of the trainer, as
    ``weightwatch/<direction>/<metric>``.

    Args:
        trainer: A ``transformers.Trainer`` or TRL trainer, before ``train()``.
        directions: What to watch: a name, a path or a ``Direction``, or several. Default: those of ``config``.
        config: A YAML file's path, a dict or a ``Config``.

    Returns:
        The callback, already added to the trainer.

    Raises:
        WeightWatchError: As ``WeightWatchCallback`` does; or the trainer is watched already.
    """
    if any(isinstance(callback, WeightWatchCallback) for callback in trainer.callback_handler.callbacks):
        raise WeightWatchError("The trainer is watched already. Name all directions in one callback or one watch().")
    callback = WeightWatchCallback(directions, config=config)
    trainer.add_callback(callback)
    trainer.log = _LogWithReadings(trainer.log, callback)
    return callback


class _LogWithReadings:
    """A trainer's ``log`` that adds the figures of the newest reading. It can be pickled with the trainer."""

    def __init__(self, log: Callable[..., Any], callback: WeightWatchCallback) -> None:
        self._log, self._callback = log, callback

    def __call__(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        figures = self._callback.scalars.take()
        logs.update(figures)
        try:
            return self._log(logs, *args, **kwargs)
        finally:  # the caller goes on to use the dict as its metrics
            for tag in figures:
                logs.pop(tag, None)
