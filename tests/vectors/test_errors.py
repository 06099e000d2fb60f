import signal

import pytest

from weightwatch.vectors import Direction, WeightWatchError
from weightwatch.vectors.errors import interrupts, text_of


def test_what_a_user_can_mend_is_one_family_and_a_value_error() -> None:
    with pytest.raises(ValueError, match="has no tensors") as caught:
        Direction.from_tensors({}, name="evil")
    assert type(caught.value) is WeightWatchError


class TextlessError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "text"), [(ValueError("x"), "x"), (MemoryError(), "MemoryError"), (TextlessError(), "TextlessError")]
)
def test_every_error_has_a_text(error: Exception, text: str) -> None:
    assert text_of(error) == text


def test_what_a_signal_handler_raises_is_an_interrupt_and_what_a_library_raises_is_not() -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with pytest.raises(SystemExit) as raised:
            signal.raise_signal(signal.SIGTERM)
        assert interrupts(raised.value)
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(SystemExit) as raised:
        raise SystemExit(143)
    assert not interrupts(raised.value)
    assert interrupts(KeyboardInterrupt())
