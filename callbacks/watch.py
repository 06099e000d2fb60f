"""Attaching the monitor to a trainer that is already built."""

from collections.abc import Mapping, Sequence
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
    """Watch a trainer that is already built: add a ``WeightWatchCallback`` to it.

    Every tracker that its ``report_to`` names gets the figures of each check, as ``weightwatch/<direction>/<metric>``.

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
    return callback
