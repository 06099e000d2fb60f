"""Keeping directions out of the update while training goes on."""

from weightwatch.guard.guard import Guard

__all__ = ["Guard"]
