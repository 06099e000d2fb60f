"""``python -m weightwatch``."""

from weightwatch.cli import run

run()
