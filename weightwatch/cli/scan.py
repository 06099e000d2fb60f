"""``weightwatch scan``: measure checkpoints on disk."""

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.logging import RichHandler
from rich.progress import Progress
from rich.text import Text

from weightwatch.cli.exit_status import ALERT, BAD_INPUT
from weightwatch.cli.files import write
from weightwatch.cli.options import AsJson, finite
from weightwatch.cli.progress import transfers
from weightwatch.report.console import console
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.printable import printable, sentence

if TYPE_CHECKING:
    from rich.console import Console

    from weightwatch.config import Config
    from weightwatch.reading.reading import Reading
    from weightwatch.rules.alert import Alert
    from weightwatch.scan.checkpoints import SavedCheckpoint
    from weightwatch.scan.scanner import Scan


def scan(
    what: Annotated[str, typer.Argument(help="A checkpoint, a PEFT adapter, a folder of several, or a Hub id.")],
    direction: Annotated[
        list[str] | None, typer.Option("--direction", "-d", help="Direction to measure against; may be repeated.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="Control direction, for the z-score; may be repeated.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Path or Hub id of the model before training. Default: the one that the run names."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with rules, directions, controls and reference. Default rules: uncalibrated ones."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for readings and alerts. Default: weightwatch-scan in the run's folder."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML file to write, too: the page of `weightwatch report` about this scan.")
    ] = None,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for further checkpoints of the run.")] = False,
    until_idle: Annotated[
        float | None,
        typer.Option(
            callback=finite, min=0, help="With --follow: stop after this many seconds without a new checkpoint."
        ),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="With --follow: stop after this many checkpoints.")
    ] = None,
    poll: Annotated[
        float, typer.Option(callback=finite, min=0.05, help="With --follow: seconds between polls of the folder.")
    ] = 5.0,
) -> None:
    """Measure checkpoints of any trainer; the exit status is 1 if an alert fired.

    Without rules in --config, each behaviour direction has a default one, which is not calibrated.
    """
    screen, aside = console(stderr=as_json), console(stderr=True)
    with screen.status("loading torch"):
        from weightwatch.config import Config
        from weightwatch.scan.loop import ScanLoop, arriving, present
        from weightwatch.scan.scanner import Scan
    settings = Config.load(config)
    beside: Path | None
    try:
        if follow:
            rounds, beside = arriving(what, poll=poll, until_idle=until_idle, stop_after=stop_after)
        else:
            rounds, beside = present(what)
        record = output.resolve() if output else beside
        if report is not None and record is None:
            raise WeightWatchError("--report needs a record. Name a folder for it with --output.")
        with _warnings(aside), transfers(aside) as bars:
            with _bar(bars, "reading the directions", None):
                scanner = Scan(
                    direction or [],
                    control or [],
                    config=settings,
                    reference=reference,
                    record=record,
                    on_read=lambda size: bars.advance(bars.task_ids[-1], size),
                )

            def measuring(one: "SavedCheckpoint") -> AbstractContextManager[None]:
                return _bar(bars, one.name, scanner.expected_bytes(one))

            loop = ScanLoop(scanner, measuring)
            try:
                for reading in loop.measure(rounds):
                    if follow:
                        _tell(aside, reading, scanner.alerts)
            except KeyboardInterrupt:
                if not follow:
                    raise
                aside.print("interrupted; the readings so far are recorded")
            except OSError as error:
                if not scanner.fired:  # else the alert is told below, whatever became of the record
                    raise
                aside.print(f"stopped: {sentence(error)}")
    except OSError as error:
        raise WeightWatchError(
            f"{error}. Check that the folders are readable and that --output is writable."
        ) from error
    if not scanner.readings and not scanner.fired:
        raise WeightWatchError(
            f"There is no complete checkpoint in {what}. Scan again when one is written; --follow waits for it."
        )
    from weightwatch.report.terminal import undecided

    if as_json:
        typer.echo(json.dumps({"scanned": what, **scanner.to_json(), "unmeasured": loop.unmeasured}, indent=1))
    else:
        _show(screen, scanner)
    for rule in scanner.undecided:
        aside.print(undecided(rule, len(scanner.readings)), style="yellow", soft_wrap=True)
    if report is not None and record is not None and scanner.readings:
        _write_page(report, record, scanner, settings, aside)
    if scanner.fired:
        raise typer.Exit(ALERT)
    if loop.unmeasured:
        raise typer.Exit(BAD_INPUT)


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
