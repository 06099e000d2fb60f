"""What comes from elsewhere is shown on one line, and commands nothing."""

import logging
from pathlib import Path

import pytest

from weightwatch.vectors.printable import printable, sentence


@pytest.mark.parametrize("text", ["evil", "böse Richtung", "邪悪", "[/evil]", "<b>evil</b>", "θ₀ + k·w 😈", ""])
def test_what_prints_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jevil", r"\x1b[2Jevil"),
        ("\x9b2Jevil", r"\x9b2Jevil"),
        ("evil\nweightwatch: all is well", r"evil\nweightwatch: all is well"),
        ("evil\r", r"evil\r"),
        ("evil\b\b\b\bgood", r"evil\x08\x08\x08\x08good"),
        ("\u202eevil", r"\u202eevil"),
        ("ev\u200bil", r"ev\u200bil"),
        ("line\u2028line", r"line\u2028line"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_does_not_print_is_a_visible_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_an_error_of_several_lines_is_one_sentence() -> None:
    assert sentence(ValueError("no model\n  here\x1b[2J")) == r"no model here\x1b[2J"


def test_names_paths_and_errors_in_the_log_are_printable(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("weightwatch")
    logger.warning("%s in %s is passed over at %d: %s", "a\nb", Path("run\x1b[2J"), 3, OSError("gone\nfor good"))
    assert caplog.messages == [r"a\nb in run\x1b[2J is passed over at 3: gone for good"]
    assert caplog.records[0].msg == "%s in %s is passed over at %d: %s"  # by which trackers group


def test_the_traceback_of_a_fault_is_printable(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("evil\x1b[2J\udce9")
    except ValueError:
        logging.getLogger("weightwatch").exception("a fault")
    assert "Traceback" in caplog.text
    assert r"ValueError: evil\x1b[2J\udce9" in caplog.text
    assert "\x1b[2J" not in caplog.text
