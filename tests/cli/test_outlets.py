"""Output that goes nowhere, or that an encoding lacks the characters for."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from weightwatch.cli.outlets import opened


def test_text_reaches_the_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        stream, outlet = opened(file)
        assert stream is not None
        assert outlet is not None
        stream.write("θ₀ + k·w\n")
        stream.flush()
    assert (tmp_path / "out").read_text(encoding="utf-8") == "θ₀ + k·w\n"
    assert outlet.fault is None


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "?? k?w"), ("cp1252", "?? k·w"), ("utf-8", "θ₀ k·w")])
def test_a_character_that_the_encoding_lacks_keeps_its_column(tmp_path: Path, encoding: str, shown: str) -> None:
    with (tmp_path / "out").open("w", encoding=encoding) as file:
        stream, _ = opened(file)
        assert stream is not None
        stream.write("θ₀ k·w")
        stream.flush()
    assert (tmp_path / "out").read_text(encoding=encoding) == shown


def test_a_name_that_is_not_of_the_encoding_is_written_all_the_same(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        stream, _ = opened(file)
        assert stream is not None
        stream.write(os.fsdecode(b"run-\xff"))
        stream.flush()
    assert (tmp_path / "out").read_text(encoding="utf-8") == "run-?"


def test_what_a_closed_pipe_does_not_take_is_lost_without_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        stream, outlet = opened(file)
        assert stream is not None
        assert outlet is not None
        for _ in range(3):
            stream.write("text\n" * 10_000)
            stream.flush()
    assert isinstance(outlet.fault, BrokenPipeError)


def test_a_full_disk_is_remembered() -> None:
    with Path("/dev/full").open("w") as file:
        stream, outlet = opened(file)
        assert stream is not None
        assert outlet is not None
        stream.write("text\n")
        stream.flush()
    assert outlet.fault is not None
    assert outlet.fault.strerror == "No space left on device"


def test_a_pipe_that_does_not_block_gets_all_of_a_long_text() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    length = 1_000_000  # more than a pipe takes at once
    with ThreadPoolExecutor(1) as beside, os.fdopen(reader) as other_end:
        received = beside.submit(other_end.read)
        with os.fdopen(writer, "w") as file:
            stream, _ = opened(file)
            assert stream is not None
            stream.write("x" * length)
            stream.flush()
        assert len(received.result()) == length


def test_a_process_without_a_stream_has_none() -> None:
    assert opened(None) == (None, None)
