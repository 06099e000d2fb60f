"""``weightwatch report`` as a user calls it."""

from pathlib import Path

from tests.support.commands import call, refused
from tests.support.references import record


def test_a_page_and_a_text_are_written_and_the_verdict_is_said(tmp_path: Path) -> None:
    runs = [record(tmp_path / name, [0.1, 0.2], n) for n, name in enumerate(("first", "second"))]
    result = call("report", *runs, "--output", tmp_path / "page.html", "--markdown", tmp_path / "text.md")
    assert result.exit_code == 0, result.output
    assert "second: There were no rules, so no alerts." in result.output
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "# weightwatch: second" in (tmp_path / "text.md").read_text()


def test_a_picture_is_written_too(tmp_path: Path) -> None:
    run = record(tmp_path / "run", [0.1, 0.2])
    result = call("report", run, "--output", tmp_path / "page.html", "--png", tmp_path / "run.png")
    assert result.exit_code == 0, result.output
    assert f"Written to {tmp_path / 'run.png'}." in result.output
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    refused("can't be written", "report", run, "--output", tmp_path / "page.html", "--png", tmp_path / "no" / "x.png")


def test_what_can_not_be_read_or_written_is_named(tmp_path: Path) -> None:
    refused("has no readings.jsonl", "report", tmp_path)
    run = record(tmp_path / "run", [0.1])
    refused("can't be written", "report", run, "--output", tmp_path / "none" / "page.html")
