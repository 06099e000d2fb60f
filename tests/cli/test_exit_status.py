from tests.support.commands import call
from weightwatch.cli.exit_status import ALERT, BAD_INPUT, FAULT


def test_no_status_means_two_things() -> None:
    assert len({0, ALERT, BAD_INPUT, FAULT}) == 4


def test_a_usage_error_is_bad_input() -> None:
    assert call("scan", "--unheard-of").exit_code == BAD_INPUT
    assert call("--version").exit_code == 0
