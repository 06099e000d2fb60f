"""``weightwatch scan``: measure checkpoints on disk."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.logging import RichHandler
from rich.progress import Progress
from rich.text import Text

from weightwatch.cli import scan_options as options
from weightwatch.cli.exit_status import ALERT, BAD_INPUT
from weightwatch.cli.files import write
from weightwatch.cli.options import AsJson
from weightwatch.cli.progress import transfers
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable, sentence

if TYPE_CHECKING:
    from rich.console import Console

    from weightwatch.config import Config
    from weightwatch.reading.reading import Reading
    from weightwatch.rules.alert import Alert
    from weightwatch.scan.loop import Rounds, ScanLoop
    from weightwatch.scan.scanner import Scan


def scan(
    what: options.What,
    direction: options.Directions = None,
    control: options.Controls = None,
    reference: options.Reference = None,
    config: options.Settings = None,
    output: options.Output = None,
    report: options.Report = None,
    as_json: AsJson = False,
    follow: options.Follow = False,
    until_idle: options.UntilIdle = None,
    stop_after: options.StopAfter = None,
    poll: options.Poll = 5.0,
) -> None:
    """Measure checkpoints of any trainer; the exit status is 1 if an alert fired.

    Without rules in --config, each behaviour direction has a default one, which is not calibrated.
    """
    screen, aside = console(stderr=as_json), console(stderr=True)
    with screen.status("loading torch"):
        from weightwatch.config import Config
        from weightwatch.scan.loop import ScanLoop, arriving, present
    settings = Config.load(config)
    rounds: Rounds
    beside: Path | None
    with _told_of_the_disk():
        if follow:
            rounds, beside = arriving(what, poll=poll, until_idle=until_idle, stop_after=stop_after)
        else:
            rounds, beside = present(what)
        record = output.resolve() if output else beside
        if report is not None and record is None:
            raise WeightWatchError("--report needs a record. Name a folder for it with --output.")
        with _warnings(aside), transfers(aside) as bars:
            scanner = _opened(direction or [], control or [], settings, reference, record, bars)
            loop = ScanLoop(scanner, lambda one: _bar(bars, one.name, scanner.expected_bytes(one)))
            _measure(loop, scanner, rounds, aside, follow=follow)
    if not scanner.readings and not scanner.fired:
        raise WeightWatchError(
            f"There is no complete checkpoint in {what}. Scan again when one is written; --follow waits for it."
        )
    if as_json:
        typer.echo(json.dumps({"scanned": what, **scanner.to_json(), "unmeasured": loop.unmeasured}, indent=1))
    else:
        _show(screen, scanner)
    _tell_undecided(aside, scanner)
    if report is not None and record is not None and scanner.readings:
        _write_page(report, record, scanner, settings, aside)
    if scanner.fired:
        raise typer.Exit(ALERT)
    if loop.unmeasured:
        raise typer.Exit(BAD_INPUT)


def _opened(
    directions: Sequence[str],
    controls: Sequence[str],
    settings: "Config",
    reference: str | None,
    record: Path | None,
    bars: Progress,
) -> "Scan":
    """Load the directions. What is read, now and later, advances the newest bar."""
    from weightwatch.scan.scanner import Scan

    with _bar(bars, "reading the directions", None):
        return Scan(
            directions,
            controls,
            config=settings,
            reference=reference,
            record=record,
            on_read=lambda size: bars.advance(bars.task_ids[-1], size),
        )


def _measure(loop: "ScanLoop", scanner: "Scan", rounds: "Rounds", aside: "Console", *, follow: bool) -> None:
    """Measure the checkpoints. Of a run that is followed, each is told as it arrives, and Ctrl-C ends the scan well."""
    try:
        for reading in loop.measure(rounds):
            if follow:
                _tell(aside, reading, scanner.alerts)
    except KeyboardInterrupt:
        if not follow:
            raise
        aside.print("interrupted; the readings so far are recorded")
    except OSError as error:
        if not scanner.fired:  # else the alert is told at the end, whatever became of the record
            raise
        aside.print(f"stopped: {sentence(error)}")


def _show(screen: "Console", scanner: "Scan") -> None:
    """Print the table, the alerts and the throughput."""
    from weightwatch.report.terminal import applied, scanned

    screen.print(scanned(scanner.readings))
    screen.print(applied(scanner.rules), soft_wrap=True, markup=False, highlight=False)
    for alert in scanner.alerts:
        screen.print(_coloured(alert))
    if scanner.seconds:
        speed = f"{scanner.bytes / 1e9:.2f} GB in {scanner.seconds:.1f} s: {scanner.gb_per_s:.2f} GB/s"
        screen.print(f"read {speed}")


def _tell_undecided(aside: "Console", scanner: "Scan") -> None:
    """Name the rules that could not judge all checkpoints, or take more than there are."""
    from weightwatch.report.terminal import undecided

    for rule in scanner.undecided:
        aside.print(
            undecided(rule, scanner.judged(rule), len(scanner.readings)), style="yellow", markup=False, soft_wrap=True
        )


def _write_page(file: Path, record: Path, scanner: "Scan", settings: "Config", aside: "Console") -> None:
    """Write the page about a scan. The exit status of an alert does not depend on it."""
    from weightwatch.record.recorded_run import RecordedRun
    from weightwatch.report import html

    settings = settings.model_copy(update={"rules": scanner.rules})
    kinds = {
        key: [direction.name for direction in scanner.directions if (direction.card.kind == "control") == is_control]
        for key, is_control in (("directions", False), ("controls", True))
    }
    run = replace(RecordedRun.of(record), config=settings.model_copy(update=kinds))
    try:
        write({file: html.page([run])})
    except WeightWatchError as error:
        if not scanner.fired:
            raise
        aside.print(sentence(error))
    else:
        aside.print(f"Written to {printable(file)}.", soft_wrap=True)


def _tell(aside: "Console", reading: "Reading", alerts: "list[Alert]") -> None:
    """Print the reading of a checkpoint as it arrives, with the alerts that it raised."""
    from weightwatch.report.terminal import number

    figures = "; ".join(
        f"{name}: cosine {number(found.cosine)}, reach cos. {number(found.reach_cosine)}, dose {number(found.dose)}"
        for name, found in reading.directions.items()
    )
    aside.print(printable(f"{reading.checkpoint}  {figures}"))
    for alert in alerts:
        if alert.step == reading.step:
            aside.print(_coloured(alert))


def _coloured(alert: "Alert") -> Text:
    return Text(alert.describe(), style="bold red" if alert.state == "firing" else "green")


@contextmanager
def _told_of_the_disk() -> Iterator[None]:
    """Turn errors of the disk into errors that the user can mend."""
    try:
        yield
    except OSError as error:
        raise WeightWatchError(
            f"{error}. Check that the folders are readable and that --output is writable."
        ) from error


@contextmanager
def _bar(bars: Progress, name: str, total: int | None) -> Iterator[None]:
    """Show a progress bar for the time of a ``with`` block."""
    task = bars.add_task(printable(name), total=total)
    try:
        yield
    finally:
        bars.remove_task(task)


@contextmanager
def _warnings(aside: "Console") -> Iterator[None]:
    """Print the package's log above the progress bars for the time of a ``with`` block."""
    logger = logging.getLogger("weightwatch")
    handler = RichHandler(console=aside, show_time=False, show_path=False, show_level=False)
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
