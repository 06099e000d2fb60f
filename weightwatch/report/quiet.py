"""Silencing the output of libraries, so that a command prints only its own."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def aside(redirected: bool = True) -> Iterator[None]:
    """Redirect prints to the standard error, so that the standard output contains only the result."""
    with redirect_stdout(sys.stderr if redirected else sys.stdout):
        yield


@contextmanager
def muted() -> Iterator[None]:
    """Turn off the package's own log in a ``with`` block, where something else shows the alerts."""
    logger = logging.getLogger("weightwatch")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off the progress bars and logs of datasets and transformers, and Python's warnings, in a ``with`` block."""
    import datasets
    from transformers.utils import logging as theirs

    bars, verbosity = datasets.are_progress_bars_disabled(), theirs.get_verbosity()
    shown = theirs.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(verbosity)
        if shown:
            theirs.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()
