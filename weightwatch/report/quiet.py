"""Keeping the libraries' own progress bars and notices out of a display of ours."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def aside(wanted: bool = True) -> Iterator[None]:
    """Send what libraries print to the standard error: the standard output belongs to the result."""
    with redirect_stdout(sys.stderr if wanted else sys.stdout):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silence datasets, transformers and Python's warnings for a while."""
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
