"""The same measurement offline: checkpoints of any trainer, measured, judged and recorded as in a live run."""

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
from torch import Tensor

from weightwatch.config import Config
from weightwatch.measure.sums import Sums, measure
from weightwatch.monitor import Monitor, warn_of_a_shared_start
from weightwatch.reading.reading import Reading, read
from weightwatch.rules.alert import Alert
from weightwatch.rules.engine import require
from weightwatch.scan.checkpoints import Stored, field, locate, stored
from weightwatch.scan.record import ScanRecord
from weightwatch.update.change import Streamed
from weightwatch.update.checkpoint import Source, StoredBase, StoredUpdate, of_adapter, of_weights
from weightwatch.update.peft.lora import REF
from weightwatch.update.reference import Reference
from weightwatch.update.theta0 import NOTE, noted, noted_adapters
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import Architecture, InModelNames, kind
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.peft_adapter import CONFIG, is_adapter, read_config
from weightwatch.vectors.weights.reader import Unmapped
from weightwatch.vectors.weights.sources import local_folder
from weightwatch.vectors.weights.tied import unsaved_heads

FOLDER = "weightwatch-scan"
"""Where a run's scan is recorded, in the run's folder."""

_RANDOM_START = (
    "its adapters started at random, and nobody watched the run: the update is measured from the base, that start "
    "included."
)

_logger = logging.getLogger("weightwatch")


class Scan:
    """Measures checkpoints one after the other against directions.

    Memory stays flat: tensors are read a few blocks at a time, whatever the size of a tensor or a model.

    Args:
        directions: Names or paths of what to watch. Default: those of ``config``.
        controls: The same for control directions.
        config: Rules and, where nothing else is given, directions, controls and the reference.
        reference: θ₀: path or Hub id. Default: what the run, the adapter or the checkpoint names.
        record: Folder for ``readings.jsonl`` and ``alerts.jsonl``; a scan that was interrupted goes on from them.
            None: nothing is written.
        on_read: Called with the number of bytes after each read, by several threads.

    Attributes:
        bytes: Bytes that were read to measure.
        seconds: Time that it took.

    Raises:
        WeightWatchError: No direction, an unknown or damaged one, or a rule that can't be judged.
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
        self.config = config or Config.load(None)
        self._on_read, self._lock = on_read, threading.Lock()
        self._opener = partial(Unmapped, on_read=self._count)
        self.bytes, self.seconds = 0, 0.0
        watched = [Direction.load(name, self._opener) for name in directions or self.config.directions]
        null = [Direction.load(name, self._opener).as_control() for name in controls or self.config.controls]
        self.directions = Monitor([*watched, *null]).directions
        require(self.config.rules, self.directions)
        self.bytes = 0
        self._given = reference or self.config.reference
        self._source: Source | None = None
        self._architecture: Architecture | None = None
        self._record = ScanRecord(record, self.config.rules)
        self._begun = False
        self._told: set[str] = set()

    def add(self, checkpoint: Stored) -> Reading | None:
        """Measure a checkpoint, judge it and record it.

        One that is recorded already, with the same files, is passed over. What was recorded of later steps is set
        aside: the run has gone back.

        Returns:
            Its reading; None if it was recorded already, or was deleted before it could be measured.

        Raises:
            WeightWatchError: θ₀ is unknown; a direction was built from another base, or has nothing in common with
                what is trained; the checkpoint can't be read.
        """
        mark = _digest(checkpoint.signature)
        try:
            if not self._begun:
                self._begin(checkpoint)
            if self._record.holds(checkpoint.name, checkpoint.step, mark):
                return None
            self._record.make_room(checkpoint.name, checkpoint.step)
            began = time.perf_counter()
            reading = self._measured(checkpoint)
            self.seconds += time.perf_counter() - began
        except (WeightWatchError, OSError) as error:
            lack = checkpoint.incomplete()
            if lack is None and isinstance(error, WeightWatchError):
                raise
            if lack is None:
                raise WeightWatchError(f"{checkpoint.path} can't be read ({error}).") from error
            _logger.warning("weightwatch: %s went away before it was measured (%s).", checkpoint.path, lack)
            return None
        self._record.add(reading, mark)
        return reading

    @property
    def readings(self) -> list[Reading]:
        """All readings so far, by step."""
        return self._record.readings

    @property
    def alerts(self) -> list[Alert]:
        """All alerts so far."""
        return self._record.alerts

    def to_json(self) -> dict[str, Any]:
        """Return all of the scan: readings and alerts as they are recorded, and how fast it went."""
        return {
            "reference": self._base_name,
            "directions": [direction.name for direction in self.directions],
            "readings": [reading.to_json() for reading in self.readings],
            "alerts": [alert.to_json() for alert in self.alerts],
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "gb_per_s": round(self.gb_per_s, 3),
        }

    @property
    def gb_per_s(self) -> float:
        """Bytes read for each second of measuring, in 10⁹."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def fired(self) -> bool:
        """Whether an alert fired."""
        return any(alert.state == "firing" for alert in self.alerts)

    def expected_bytes(self, checkpoint: Stored) -> int:
        """Return about how many bytes will be read to measure a checkpoint: it, its base, and dense directions."""
        if checkpoint.adapter:
            return checkpoint.size
        return checkpoint.size * (2 + sum(direction.on_disk for direction in self.directions))

    def _count(self, size: int) -> None:
        with self._lock:  # threads read side by side
            self.bytes += size
        if self._on_read is not None:
            self._on_read(size)

    # θ₀ and the record, once the first checkpoint says what kind of run this is.

    def _begin(self, first: Stored) -> None:
        self._live = _live_folder(first)
        self._starts: Mapping[str, Tensor] = noted_adapters(self._live) if self._live is not None else {}
        self._source = self._find_adapter_base(first) if first.adapter else self._find_reference(first)
        self._translate(first)
        self._check_base(first)
        self._record.begin(first.path.parent, {"key": self._key(), "reference": self._base_name})
        self._begun = True

    @property
    def _base_name(self) -> str:
        match self._source:
            case None:
                return ""
            case Checkpoint(path=path):
                return str(path)
            case _:
                return str(self._live)

    def _find_reference(self, first: Stored) -> Source:
        if self._given:
            return Checkpoint(locate(self._given), self._opener)
        if self._live is not None:
            if field(self._live / NOTE, "weights") == "given":
                raise WeightWatchError(f"The run of {first.path} was given a reference of its own: pass --reference.")
            try:
                source = noted(self._live, self._opener)
            except WeightWatchError as error:
                raise WeightWatchError(f"{error} It is what {self._live / NOTE} names: pass --reference.") from error
            if source is not None:
                return source
        here = first.folder.resolve()
        named = field(here / "config.json", "_name_or_path")
        folder = local_folder(named)
        if folder is None or folder == here:
            raise WeightWatchError(
                f"θ₀ of {first.path} is unknown: no weightwatch/{NOTE} lies beside it, and its config names "
                f"{named or 'no base'}{', which is not on this machine' if named and folder is None else ''}. Pass "
                "--reference, the path or Hub id of the checkpoint that training started from."
            )
        _logger.warning("weightwatch: θ₀ is read from %s, as the checkpoint's config says.", folder)
        return Checkpoint(folder, self._opener)

    def _find_adapter_base(self, first: Stored) -> Source | None:
        """Return the base of an adapter, for the fingerprint alone; None where it isn't on this machine."""
        if self._given:
            return Checkpoint(locate(self._given), self._opener)
        named = field(first.path / CONFIG, "base_model_name_or_path")
        folder = local_folder(named)
        try:
            if folder is not None:
                return Checkpoint(folder, self._opener)
        except WeightWatchError as error:
            _logger.warning("weightwatch: %s", error)
        _logger.warning(
            "weightwatch: the base of %s (%s) is not on this machine, so nothing tells whether the directions were "
            "built from it. Pass --reference to have it checked.",
            first.path,
            named or "not named",
        )
        return None

    def _translate(self, first: Stored) -> None:
        """Go over to the names in the model where a direction has those and the files have others."""
        wanted = {name for direction in self.directions for name in direction.deltas if indexed(name)}
        files = [self._source] if isinstance(self._source, Checkpoint) else []
        files += [] if first.adapter else [Checkpoint(first.path, self._opener)]
        if all(wanted <= set(file) for file in files):
            return
        folders = [first.folder, *(file.path for file in files)]
        folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
        try:
            model = Architecture(folder) if folder is not None else None
        except Exception as error:  # of code for this one model, or of a transformers that has changed
            self._say(f"The names of {folder} can't be told from its config ({error}); those in the files are used.")
            return
        if model is None or not any(wanted & set(InModelNames(file.path, model)) - set(file) for file in files):
            return
        self._architecture = model
        if isinstance(self._source, Checkpoint):
            self._source = self._opened(self._source.path)

    def _opened(self, path: Path) -> Checkpoint:
        if self._architecture is not None:
            return InModelNames(path, self._architecture, self._opener)
        return Checkpoint(path, self._opener)

    def _check_base(self, first: Stored) -> None:
        if self._source is None:
            return
        sources = [self._source]
        if not first.adapter:
            sources.append(self._opened(first.path))
        for direction in self.directions:
            direction.require(StoredBase(*sources), self._base_name)

    def _key(self) -> str:
        """Return what tells scans apart: their directions and their θ₀."""
        watched = [(d.name, d.card.kind, sorted(d.squares.items())) for d in self.directions]
        base = stored(Path(self._base_name).resolve()) if self._base_name else None
        note = (self._live / NOTE).stat().st_mtime_ns if self._live is not None else 0
        return _digest([watched, base and (base.path, base.signature), self._live, note])

    # One checkpoint.

    def _measured(self, checkpoint: Stored) -> Reading:
        update = self._update(checkpoint)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if update is None:
            reading = self._loaded(checkpoint)
            return replace(reading, checkpoint=checkpoint.name)
        tied, holder = update.tied, update.holder or self._source
        if isinstance(holder, Checkpoint):
            shapes = {name: d.shape(name) for d in self.directions for name in d.deltas}
            tied |= unsaved_heads(holder, shapes)
        directions = [direction.without(tied) for direction in self.directions]
        for direction in directions:
            if update.changes.keys().isdisjoint(direction.deltas):
                raise WeightWatchError(
                    f"Direction {direction.name!r} and {checkpoint.path} have no tensor in common: the direction has "
                    f"{next(iter(direction.deltas))}, …; the checkpoint has {next(iter(update.changes))}, …. Scan a "
                    f"run that trains the modules it was built on ({', '.join(direction.card.target_modules)})."
                )
        sums = measure(update.changes, directions, left_out=update.left_out)
        if not self.readings:
            warn_of_a_shared_start(directions, update.changes, sums)
        self._warn(checkpoint, sums.left_out)
        reading = read(_without_unmoved(sums, update), directions, step=checkpoint.step, time=now)
        return replace(reading, checkpoint=checkpoint.name)

    def _update(self, checkpoint: Stored) -> StoredUpdate | None:
        """Return a checkpoint's update; None where only loading the model tells it."""
        if not checkpoint.adapter:
            if self._source is None:  # the run began with adapters
                self._source = self._find_reference(checkpoint)
            return of_weights(self._opened(checkpoint.path), self._source)
        try:
            config = read_config(checkpoint.path)
            if config.get("init_lora_weights", True) is False and not self._starts:
                self._say(_RANDOM_START, checkpoint)
            return of_adapter(checkpoint.path, config, self._starts, self._opener)
        except WeightWatchError as error:
            if checkpoint.incomplete() is not None:
                raise
            if not isinstance(self._source, Checkpoint) or not (self._source.path / "config.json").is_file():
                raise WeightWatchError(f"{error} Or pass its base's folder as --reference, to load both.") from error
            self._say(f"{error} It is loaded with its base instead, which takes the memory of the whole model.")
            return None

    def _loaded(self, checkpoint: Stored) -> Reading:
        """Measure an adapter whose change is more than B A by loading it into its base."""
        from peft import PeftConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

        assert isinstance(self._source, Checkpoint)
        weights = noted(self._live) if self._live is not None else None
        monitor = Monitor(self.directions, reference=Reference(weights, self._starts))
        try:
            config = PeftConfig.from_pretrained(str(checkpoint.path))
            config.inference_mode = False
            model = get_peft_model(kind(self._source.path).from_pretrained(self._source.path, dtype="auto"), config)
            if not self._starts:
                monitor.start(model)
                if monitor.reference.adapters and not _starts_alike(config):
                    self._say(_RANDOM_START, checkpoint)
                    monitor = Monitor(self.directions, reference=Reference(weights))
            if is_adapter(checkpoint.path / REF):
                model.load_adapter(str(checkpoint.path / REF), REF)
            left = set_peft_model_state_dict(model, load_peft_weights(str(checkpoint.path), device="cpu"))
        except WeightWatchError:
            raise
        except Exception as error:  # of PEFT's own, of transformers, of code for this one model
            raise WeightWatchError(
                f"{checkpoint.path} can't be loaded with its base {self._source.path} ({error!r}). Pass "
                "as --reference the base that it was trained on."
            ) from error
        if left.unexpected_keys:
            raise WeightWatchError(
                f"{checkpoint.path} holds {left.unexpected_keys[0]}, for which its base {self._source.path} has no "
                "place. Pass as --reference the base that it was trained on."
            )
        self._count(checkpoint.size)
        return monitor.read(monitor.view(model), checkpoint.step)

    def _warn(self, checkpoint: Stored, left_out: Mapping[str, str]) -> None:
        names = list(left_out)
        for name in names[:5]:
            self._say(f"{name} is left out of the measurement: {left_out[name]}.", checkpoint)
        if len(names) > 5:
            self._say(f"{len(names) - 5} more tensors are left out; readings.jsonl and --json name them.", checkpoint)

    def _say(self, text: str, checkpoint: Stored | None = None) -> None:
        if text not in self._told:
            _logger.warning("weightwatch: %s%s", f"{checkpoint.name}: " if checkpoint else "", text)
        self._told.add(text)


def _without_unmoved(sums: Sums, update: StoredUpdate) -> Sums:
    """Count full tensors that equal θ₀ as frozen, as a live run does, unless nothing has moved at all."""
    full = np.array([isinstance(update.changes.get(name), Streamed) for name in sums.names])
    still = full & (sums.update == 0)
    if not (sums.update > 0).any():
        return sums
    return replace(
        sums,
        reached=np.where(still[:, None], 0.0, sums.reached),
        freedom=np.where(still, 0.0, sums.freedom),
    )


def _starts_alike(config: Any) -> bool:
    """Whether what an adapter starts with follows from the base alone; DoRA's, but for rounding, is zero."""
    init = getattr(config, "init_lora_weights", None)
    return init in ("pissa", "olora") or (init in (True, "gaussian") and config.use_dora)


def _live_folder(checkpoint: Stored) -> Path | None:
    """Return the weightwatch folder of the run that a checkpoint belongs to, if it was watched."""
    here = checkpoint.folder.resolve()
    found = (folder / "weightwatch" for folder in (here, here.parent))
    return next((folder for folder in found if (folder / NOTE).is_file()), None)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]
