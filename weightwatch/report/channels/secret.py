"""Secrets: read from environment variables, and hidden wherever they might be shown."""

import os
from collections.abc import Iterable

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable

_SHORTEST = 4  # characters; anything shorter is no secret, and is found in ordinary words
_SHOWN = 200  # characters


def secret(variable: str) -> str:
    """Return the value of an environment variable, without white space around it.

    Raises:
        WeightWatchError: It is not set, or empty.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise WeightWatchError(
            f"notify: the environment variable {variable} is not set. Set it in the environment of the training "
            f"(`export {variable}=…`), or remove the channel."
        )
    return value


def hidden(text: str, secrets: Iterable[str]) -> str:
    r"""Return the beginning of a text from elsewhere: on one line, printable, with ``***`` in place of secrets.

    Example:
        >>> hidden("no such hook:\n/services/T0/abcd", ["abcd", "T0"])
        'no such hook: /services/T0/***'
    """
    for each in sorted(secrets, key=len, reverse=True):
        if len(each) >= _SHORTEST:
            text = text.replace(each, "***")
    line = printable(" ".join(text.split()))
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
