"""``python -m weightwatch``."""

from weightwatch.cli.main import run

run()
