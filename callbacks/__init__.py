"""Attaching weightwatch to trainers."""

from weightwatch.callbacks.trainer import WeightWatchCallback
from weightwatch.callbacks.watch import watch

__all__ = ["WeightWatchCallback", "watch"]
