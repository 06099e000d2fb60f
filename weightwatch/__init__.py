"""A training-time monitor: how far a fine-tune moves a model's weights along behaviour directions.

Public names are loaded at their first use, so that ``import weightwatch`` is quick and pulls in no trainer.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from weightwatch.vectors.printable import escaped

if TYPE_CHECKING:
    from weightwatch.callbacks import WeightWatchCallback, watch
    from weightwatch.config import Config
    from weightwatch.monitor import Monitor
    from weightwatch.reading.reading import Reading
    from weightwatch.rules.alert import Alert
    from weightwatch.vectors import Direction, WeightWatchError

logging.getLogger("weightwatch").addFilter(escaped)  # the logger of the whole package

__all__ = [
    "Alert",
    "Config",
    "Direction",
    "Monitor",
    "Reading",
    "WeightWatchCallback",
    "WeightWatchError",
    "watch",
]

_HOMES = {
    "Alert": "rules.alert",
    "Config": "config",
    "Direction": "vectors",
    "Monitor": "monitor",
    "Reading": "reading.reading",
    "WeightWatchCallback": "callbacks",
    "WeightWatchError": "vectors",
    "watch": "callbacks",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"weightwatch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'weightwatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
