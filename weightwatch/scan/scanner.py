"""Measuring checkpoints of any trainer on disk: the same readings, rules and records as in a live run."""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from weightwatch.config import Config, Rule
from weightwatch.measure.sums import Sums, measure
from weightwatch.monitor import Monitor, warn_of_a_shared_start
from weightwatch.reading.reading import Reading, read
from weightwatch.rules.alert import Alert
from weightwatch.rules.defaults import rules_of_a_scan
from weightwatch.rules.engine import require
from weightwatch.scan.checkpoints import SavedCheckpoint
from weightwatch.scan.find_reference import RunReference
from weightwatch.scan.loaded_adapter import measure_loaded
from weightwatch.scan.record import ScanRecord
from weightwatch.setup import Setup
from weightwatch.update.change import Streamed
from weightwatch.update.checkpoint import SavedUpdate, of_adapter, of_weights, under_names_of
from weightwatch.update.heads import counted_once
from weightwatch.vectors.catalog import bank
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import NotFactorsError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.peft_adapter import PeftAdapter
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.tied import unsaved_heads

FOLDER = "weightwatch-scan"
"""Name of the folder, in the run's folder, where a scan is recorded."""

_RANDOM_START = "its adapters started at random and the run was not watched, so the update includes that start."

_logger = logging.getLogger("weightwatch")


class Scan:
    """Measures checkpoints in order against directions.

    The memory in use does not grow with the model: tensors are read block by block. Only adapters whose change is more
    than B A are loaded with their base.

    Args:
        directions: Names or paths of the directions to watch. Default: those of ``config``.
        controls: Names or paths of control directions. Default: those of ``config``.
        config: Rules, and defaults for directions, controls and reference. Without rules, each behaviour direction has
            a default one, see ``rules_of_a_scan``.
        reference: Path or Hub id of θ₀. Default: the one that ``config``, the run, the adapter or the checkpoint names.
        record: Folder for ``readings.jsonl`` and ``alerts.jsonl``, from which an interrupted scan continues. Default:
            nothing is written.
        on_read: Called with the number of bytes after each read, from several threads.

    Attributes:
        directions: The directions and controls.
        rules: The rules, default ones included.
        bytes: Number of bytes read to measure.
        seconds: Time spent measuring.

    Raises:
        WeightWatchError: There is no direction, a direction can't be loaded, or a rule does not fit the directions.
    """

    def __init__(
        self,
        directions: Sequence[str] = (),
        controls: Sequence[str] = (),
        *,
        config: Config | None = None,
        reference: str | None = None,
        record: Path | None = None,
        on_read: Callable[[int], None] | None = None,
    ) -> None:
        config = config or Config.load(None)
        self._on_read, self._lock = on_read, threading.Lock()
        self._opener = partial(Unmapped, on_read=self._count)
        self.bytes, self.seconds = 0, 0.0
        watched = [Direction.load(name, self._opener) for name in directions or config.directions]
        beside = [] if "controls" in config.model_fields_set else bank(directions or config.directions)
        null = [Direction.load(name, self._opener).as_control() for name in controls or config.controls or beside]
        self.directions = Monitor([*watched, *null]).directions
        self.rules = rules_of_a_scan(config, self.directions)
        require(self.rules, self.directions)
        self.bytes = 0
        self._given = reference or config.reference
        self._references: dict[str | None, RunReference] = {}  # by the run's id
        self._record = ScanRecord(record, self.rules)
        self._warned: set[str] = set()

    def add(self, checkpoint: SavedCheckpoint) -> Reading | None:
        """Measure a checkpoint, apply the rules and record the reading.

        A checkpoint that is already recorded with the same files is skipped. If later steps are recorded, the run has
        gone back, and their readings are set aside.

        Returns:
            The reading; None if the checkpoint was skipped, or deleted before it could be measured.

        Raises:
            WeightWatchError: θ₀ is unknown, a direction was built from another base or has no tensor in common with the
                checkpoint, the checkpoint can't be read or is written to meanwhile, or another scan records to the
                same folder.
        """
        mark, version = _digest(checkpoint.signature), checkpoint.version
        try:
            reference = self._reference_of(checkpoint)
        except (WeightWatchError, OSError) as error:
            _raise_unless_deleted(checkpoint, error)
            return None
        if not self._references or not self._record.taken:
            first = self._first or reference
            watched = [(d.name, d.card.kind, sorted(d.squares.items())) for d in self.directions]
            key = _digest([watched, *first.signature()])
            known = Setup.read(checkpoint.path.parent / "weightwatch")
            setup = None if known is None else Setup.of(known.training, known.every, self.directions, known.guard)
            self._record.begin(checkpoint.path.parent, {"key": key, "reference": first.name}, setup)
        self._references[checkpoint.run] = reference
        if self._record.holds(checkpoint.name, checkpoint.step, mark):
            return None
        self._record.make_room(checkpoint.name, checkpoint.step)
        began = time.perf_counter()
        try:
            reading = replace(self._measured(checkpoint, reference), checkpoint=checkpoint.name)
            if checkpoint.rewritten(version) or reference.rewritten:
                raise WeightWatchError(
                    f"{checkpoint.path} or its θ₀ was written to while it was measured, so the figures may be of two "
                    "versions. Scan again when it is written; --follow does that."
                )
        except (WeightWatchError, OSError) as error:
            _raise_unless_deleted(checkpoint, error)
            return None
        self.seconds += time.perf_counter() - began
        self._record.add(reading, mark)
        return reading

    def close(self) -> None:
        """Let other scans record to the same folder. The next ``add`` takes the folder again."""
        self._record.close()

    @property
    def readings(self) -> list[Reading]:
        """All readings so far, by step."""
        return self._record.readings

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far, in order."""
        return self._record.alerts

    @property
    def undecided(self) -> list[Rule]:
        """The rules that take more checkpoints in a row than they can judge, or can't judge all of them."""
        count = len(self.readings)
        return [rule for rule in self.rules if rule.for_ > self.judged(rule) or self.judged(rule) < count]

    def judged(self, rule: Rule) -> int:
        """Return how many of the checkpoints a rule can judge: with a baseline, those of steps that it knows."""
        first = rule.baseline.steps[0] if rule.baseline is not None else 0
        return sum(reading.step >= first for reading in self.readings)

    def to_json(self) -> dict[str, Any]:
        """Return the whole scan as JSON: readings and alerts as in the record, rules as in settings, the throughput."""
        return {
            "reference": self._first.name if self._first is not None else "",
            "directions": [direction.name for direction in self.directions],
            "rules": [rule.model_dump(mode="json", by_alias=True, exclude_none=True) for rule in self.rules],
            "readings": [reading.to_json() for reading in self.readings],
            "alerts": [alert.to_json() for alert in self.alerts],
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "gb_per_s": round(self.gb_per_s, 3),
        }

    @property
    def gb_per_s(self) -> float:
        """Throughput in 10⁹ bytes per second of measuring."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def fired(self) -> bool:
        """Whether an alert fired."""
        return any(alert.state == "firing" for alert in self.alerts)

    def expected_bytes(self, checkpoint: SavedCheckpoint) -> int:
        """Return about how many bytes are read to measure a checkpoint: itself, its base, and dense directions."""
        if checkpoint.adapter:
            return checkpoint.size
        return checkpoint.size * (2 + sum(direction.on_disk for direction in self.directions))

    @property
    def _first(self) -> RunReference | None:
        return next(iter(self._references.values()), None)

    def _reference_of(self, checkpoint: SavedCheckpoint) -> RunReference:
        """Return θ₀ of a checkpoint's run: a folder may have checkpoints of several runs."""
        if checkpoint.run in self._references:
            return self._references[checkpoint.run]
        if self._references:
            self._warn(
                "it is of another run than the checkpoints before it, and is measured from its own θ₀.", checkpoint
            )
        return RunReference(checkpoint, self._given, self.directions, self._opener)

    def _count(self, size: int) -> None:
        with self._lock:  # several threads read
            self.bytes += size
        if self._on_read is not None:
            self._on_read(size)

    def _measured(self, checkpoint: SavedCheckpoint, reference: RunReference) -> Reading:
        if not checkpoint.adapter:
            weights = reference.weights(checkpoint)
            return self._read(checkpoint, reference, of_weights(reference.open(checkpoint.path), weights))
        others = checkpoint.other_adapters
        if others and checkpoint.within:
            raise WeightWatchError(
                f"{checkpoint.path} has several adapters ({', '.join([checkpoint.within, *others])}), and which of "
                f"them were active is not recorded. Pass the folder of one, {checkpoint.home}."
            )
        base = reference.source if isinstance(reference.source, Checkpoint) else None
        try:
            adapter = PeftAdapter.read(checkpoint.home, base, checkpoint.within or "default")
            if adapter.settings.init_lora_weights is False and not reference.adapters:
                self._warn(_RANDOM_START, checkpoint)
            update = of_adapter(adapter, reference.adapters, reference.sources, self._opener)
            update = under_names_of(base, update) if base is not None else update
            beside = dict.fromkeys(others, "it is another adapter, saved beside the one that is measured")
            update = replace(update, left_out={**update.left_out, **beside})
        except NotFactorsError as error:
            if checkpoint.incomplete() is not None:
                raise
            if base is None or not (base.path / "config.json").is_file():
                raise WeightWatchError(f"{error} Or pass its base's folder as --reference, to load both.") from error
            self._warn(f"{error} It is loaded with its base instead, which takes the memory of the whole model.")
            reading, random = measure_loaded(checkpoint, base, self.directions, reference.recorded)
            if random:
                self._warn(_RANDOM_START, checkpoint)
            self._count(checkpoint.size)
            return reading
        return self._read(checkpoint, reference, update)

    def _read(self, checkpoint: SavedCheckpoint, reference: RunReference, update: SavedUpdate) -> Reading:
        holder = update.holder or reference.source
        shapes = {name: d.shape(name) for d in self.directions for name in d.deltas}
        heads = unsaved_heads(holder, shapes) if isinstance(holder, Checkpoint) else {}
        directions = [counted_once(d.without(update.tied), heads, update.changes) for d in self.directions]
        for direction, counted in zip(self.directions, directions, strict=True):
            if update.changes.keys().isdisjoint(counted.deltas):
                raise WeightWatchError(
                    f"Direction {direction.name!r} and {checkpoint.path} have no tensor in common: the direction has "
                    f"{next(iter(direction.deltas))}, …; the checkpoint has {next(iter(update.changes))}, …. Scan a "
                    f"run that trains the modules it was built on ({', '.join(direction.card.target_modules)})."
                )
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        sums = measure(update.changes, directions, left_out=update.left_out)
        if not self.readings:
            warn_of_a_shared_start(directions, update.changes, sums)
        self._warn_of(sums.left_out, checkpoint)
        return read(_without_unmoved(sums, update), directions, step=checkpoint.step, time=now)

    def _warn_of(self, left_out: Mapping[str, str], checkpoint: SavedCheckpoint) -> None:
        for name, reason in list(left_out.items())[:5]:
            self._warn(f"{name} is left out of the measurement: {reason}.", checkpoint)
        if (more := len(left_out) - 5) > 0:
            self._warn(f"{more} more tensors are left out. readings.jsonl and --json list them.", checkpoint)

    def _warn(self, text: str, checkpoint: SavedCheckpoint | None = None) -> None:
        """Log a warning, but each text only once."""
        if text not in self._warned:
            _logger.warning("weightwatch: %s%s", f"{checkpoint.name}: " if checkpoint else "", text)
        self._warned.add(text)


def _raise_unless_deleted(checkpoint: SavedCheckpoint, error: Exception) -> None:
    """Raise what went wrong with a checkpoint, unless it was deleted meanwhile."""
    lack = checkpoint.incomplete()
    if lack is not None and checkpoint.pickled is None:
        _logger.warning("weightwatch: %s was deleted before it was measured (%s).", checkpoint.path, lack)
    elif isinstance(error, WeightWatchError):
        raise error
    else:
        raise WeightWatchError(f"{checkpoint.path} can't be read ({error}).") from error


def _without_unmoved(sums: Sums, update: SavedUpdate) -> Sums:
    """Count full tensors that equal θ₀ as frozen, like a live run; if nothing has moved at all, as trained."""
    still = np.array([isinstance(update.changes.get(n), Streamed) for n in sums.names]) & (sums.update == 0)
    if not (sums.update > 0).any():
        return sums
    reached = np.where(still[:, None], 0.0, sums.reached)
    return replace(sums, reached=reached, freedom=np.where(still, 0.0, sums.freedom))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]
