"""Calling the command line in this process, as a user would."""

import json
from typing import Any

from typer.testing import CliRunner, Result

from weightwatch.cli.main import app
from weightwatch.vectors import WeightWatchError


def call(*arguments: object) -> Result:
    """Call a command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(*arguments: object) -> dict[str, Any]:
    """Call with --json and return what it prints, all of which must be one document."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def refused(reason: str, *arguments: object) -> None:
    """Call what must end with an error that the user can mend."""
    result = call(*arguments)
    assert isinstance(result.exception, WeightWatchError), result.output
    assert reason in str(result.exception)
