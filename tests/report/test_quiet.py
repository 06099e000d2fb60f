"""Keeping the output of libraries apart, with the libraries themselves."""

import warnings
from logging import getLogger

import datasets
import pytest
from transformers.utils import logging

from weightwatch.report.quiet import aside, muted, quiet


@pytest.mark.parametrize("redirected", [True, False])
def test_prints_go_to_the_standard_error_if_they_are_redirected(
    redirected: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with aside(redirected):
        print("noise")
    print("result")
    found = capsys.readouterr()
    assert found.out == ("result\n" if redirected else "noise\nresult\n")
    assert found.err == ("noise\n" if redirected else "")


def test_libraries_are_quiet_in_the_block_and_as_before_after_an_error() -> None:
    def state() -> tuple[bool, bool, int]:
        return datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled(), logging.get_verbosity()

    def fail() -> None:
        with quiet():
            assert state() == (True, False, logging.ERROR)
            warnings.warn("hush", stacklevel=1)
            raise KeyError

    before = state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(KeyError):
            fail()
    assert state() == before
    assert caught == []


def test_the_packages_own_log_is_off_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    logger = getLogger("weightwatch")
    with muted():
        logger.critical("inside")
    logger.critical("after")
    assert [record.getMessage() for record in caplog.records] == ["after"]
