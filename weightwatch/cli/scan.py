"""What ``weightwatch scan`` does and shows on the terminal."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.text import Text

from weightwatch.config import Config
from weightwatch.reading.reading import Reading
from weightwatch.report.terminal import number, scanned
from weightwatch.scan.checkpoints import Stored, find, follow, locate
from weightwatch.scan.scanner import FOLDER, Scan
from weightwatch.vectors.errors import WeightWatchError

_logger = logging.getLogger("weightwatch")


class Scanning:
    """A scan with its progress on the terminal.

    Args:
        console: For what was found.
        aside: For progress and warnings.
        directions: Names or paths.
        controls: Names or paths.
        config: Path of the settings.
        reference: Path or Hub id of θ₀.

    Attributes:
        unmeasured: Checkpoints that could not be measured, each with the reason.
    """

    def __init__(
        self,
        console: Console,
        aside: Console,
        directions: Sequence[str],
        controls: Sequence[str],
        config: Path | None,
        reference: str | None,
    ) -> None:
        self._console, self._aside = console, aside
        self._directions, self._controls, self._reference = directions, controls, reference
        self._config = Config.load(config)
        self.unmeasured: dict[str, str] = {}
        self._failed: set[object] = set()

    def all(self, what: str, out: Path | None) -> Scan:
        """Scan what is there now.

        Raises:
            WeightWatchError: See ``checkpoints.find`` and ``Scan``.
        """
        path = locate(what)
        found, is_run = find(path)
        record = path / FOLDER if is_run and Path(what).exists() else None  # nothing into the Hub's cache
        with self._shown(out or record) as (scan, progress):
            for one in found:
                lack = one.lacks()
                if lack is not None:
                    _logger.warning("weightwatch: %s is passed over, since it is not whole: %s.", one.path, lack)
                    continue
                self._add(scan, progress, one)
        if not scan.readings:
            raise WeightWatchError(f"No checkpoint in {what} is whole. Wait until one is written, or pass --follow.")
        return scan

    def follow(
        self, what: str, out: Path | None, *, poll: float, until_idle: float | None, stop_after: int | None
    ) -> Scan:
        """Scan what is there and what comes, until it is interrupted or nothing comes any more.

        Raises:
            WeightWatchError: There is no such folder; see ``Scan``.
        """
        path = Path(what)
        if not path.is_dir():
            raise WeightWatchError(f"No folder at {what} to follow. Begin the training first, or make it.")
        with self._shown(out or path / FOLDER) as (scan, progress):
            rounds = follow(path, poll=poll, until_idle=until_idle, stop_after=stop_after)
            try:
                for here in rounds:
                    for one in here:
                        alerts = len(scan.alerts)
                        reading = self._add(scan, progress, one)
                        if reading is not None:
                            self._tell(scan, reading, alerts)
            except KeyboardInterrupt:
                self._aside.print("interrupted; what was measured is recorded")
        if not scan.readings:
            raise WeightWatchError(f"No checkpoint came to {what} that could be measured.")
        return scan

    def show(self, scan: Scan) -> None:
        """Print the table, the alerts and the throughput."""
        self._console.print(scanned(scan.readings))
        for alert in scan.alerts:
            self._console.print(Text(alert.describe(), style="bold red" if alert.state == "firing" else "green"))
        if scan.seconds:
            self._console.print(
                f"read {scan.bytes / 1e9:.2f} GB in {scan.seconds:.1f} s: {scan.gb_per_s:.2f} GB/s", highlight=False
            )

    def _tell(self, scan: Scan, reading: Reading, alerts: int) -> None:
        """Print a checkpoint as it comes, with the alerts that it raised."""
        figures = "; ".join(
            f"{name}: cosine {number(found.cosine)}, reach cos. {number(found.reach_cosine)}, dose {number(found.dose)}"
            for name, found in reading.directions.items()
        )
        self._aside.print(f"{reading.checkpoint}  {figures}", highlight=False)
        for alert in scan.alerts[alerts:]:
            self._aside.print(Text(alert.describe(), style="bold red" if alert.state == "firing" else "green"))

    def _add(self, scan: Scan, progress: Progress, one: Stored) -> Reading | None:
        """Measure a checkpoint. If it can't be, but others before it could, the scan goes on with the next one.

        Raises:
            WeightWatchError: It is the first one, so that the fault is likely one of them all.
        """
        mark = one.path, one.signature
        if mark in self._failed:  # while a run is followed
            return None
        task = progress.add_task(one.name, total=scan.expected_bytes(one))
        self._task = task
        try:
            reading = scan.add(one)
            self.unmeasured.pop(one.name, None)
            return reading
        except WeightWatchError as error:
            if not scan.readings:
                raise
            _logger.warning("weightwatch: %s is passed over: %s", one.path, error)
            self.unmeasured[one.name] = str(error)
            self._failed.add(mark)
            return None
        finally:
            progress.remove_task(task)

    @contextmanager
    def _shown(self, record: Path | None) -> Iterator[tuple[Scan, Progress]]:
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._aside,
            transient=True,
        )
        handler = RichHandler(console=self._aside, show_time=False, show_path=False, show_level=False)
        propagated = _logger.propagate
        _logger.addHandler(handler)
        _logger.propagate = False
        self._task = progress.add_task("reading the directions", total=None)
        try:
            with progress:
                scan = Scan(
                    self._directions,
                    self._controls,
                    config=self._config,
                    reference=self._reference,
                    record=record,
                    on_read=lambda size: progress.advance(self._task, size),
                )
                progress.remove_task(self._task)
                yield scan, progress
        finally:
            _logger.removeHandler(handler)
            _logger.propagate = propagated
