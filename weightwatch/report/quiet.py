"""Silencing the output of libraries, so that a command prints only its own."""

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
def quiet() -> Iterator[None]:
    """Turn off the progress bars and logs of datasets and transformers, and Python's warnings, in a ``with`` block."""
    import datasets
    from transformers.utils import logging

    bars, verbosity = datasets.are_progress_bars_disabled(), logging.get_verbosity()
    shown = logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()
