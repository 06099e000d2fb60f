import pytest

from weightwatch import WeightWatchError
from weightwatch.report.channels.secret import hidden, secret


def test_a_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", " https://host/ \n")
    assert secret("HOOK") == "https://host/"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_variable_that_is_not_set_is_named(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    with pytest.raises(WeightWatchError, match="the environment variable HOOK is not set"):
        secret("HOOK")


def test_the_longest_secret_goes_first_and_what_is_short_is_no_secret() -> None:
    assert hidden("abcdef abcd ab", ["abcd", "abcdef", "ab", ""]) == "*** *** ab"


def test_what_is_shown_is_short_and_printable() -> None:
    assert hidden("\x1b[2J\nx", []) == "\\x1b[2J x"
    assert len(hidden("x" * 10_000, [])) == 201
