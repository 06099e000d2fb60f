"""Attaching weightwatch to trainers."""

from weightwatch.callbacks.trainer import WeightWatchCallback
from weightwatch.callbacks.watch import watch

if __name__ != "weightwatch.callbacks":
    raise ImportError("Import this package as weightwatch.callbacks: under another name its classes would exist twice.")

__all__ = ["WeightWatchCallback", "watch"]
