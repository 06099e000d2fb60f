"""Text from elsewhere (names, paths, messages) made safe to show: it can't move the cursor or forge a line."""

import logging
from pathlib import PurePath


def printable(text: object) -> str:
    r"""Return text on one line, with visible escapes for what does not print.

    Those are control characters, the escape that begins a terminal's commands, line breaks, invisible characters and
    marks that turn the direction of writing.

    Example:
        >>> print(printable("evil\x1b[2J\n"), printable("böse"))
        evil\x1b[2J\n böse
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def sentence(error: BaseException) -> str:
    """Return the message of an exception, printable, and with spaces in place of its line breaks."""
    return printable(" ".join(str(error).split()))


def escaped(record: logging.LogRecord) -> bool:
    """Make the names, paths, errors and traceback of a log record printable: a filter of the logger ``weightwatch``."""
    if isinstance(record.args, tuple):
        record.args = tuple(_shown(value) for value in record.args)
    if record.exc_info and not record.exc_text:  # formatters take the text that is there
        lines = logging.Formatter().formatException(record.exc_info).splitlines()
        record.exc_text = "\n".join(printable(line) for line in lines)
    return True


def _shown(value: object) -> object:
    if isinstance(value, BaseException):
        return sentence(value)
    return printable(value) if isinstance(value, str | PurePath) else value
