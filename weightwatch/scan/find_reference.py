"""Finding θ₀ of a run's checkpoints: as passed, as recorded by the run, or as named by a config."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from weightwatch.record.run_folder import start_of
from weightwatch.scan.checkpoints import SavedCheckpoint, checkpoint_at, field, locate
from weightwatch.update.checkpoint import SavedBase, Source
from weightwatch.update.reference import Reference
from weightwatch.update.theta0 import NOTE, recorded_adapters, recorded_weights
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import CONFIG
from weightwatch.vectors.weights.checkpoint import Checkpoint
from weightwatch.vectors.weights.conversion import Architecture, InModelNames
from weightwatch.vectors.weights.names import indexed
from weightwatch.vectors.weights.reader import Opener
from weightwatch.vectors.weights.sources import local_folder

_logger = logging.getLogger("weightwatch")


class RunReference:
    """θ₀ of the checkpoints of one run.

    For full checkpoints, θ₀ is the first of these that exists: the reference that was passed, the one that the watched
    run recorded, the base that the checkpoint's config names. For adapters, it is only compared with the directions'
    fingerprints, and may be unknown.

    Args:
        first: The first checkpoint to measure.
        given: Path or Hub id of the reference; None if none was passed.
        directions: The directions. If the tensors in the files have other names than in the directions, checkpoints
            are read under the parameter names of the model.
        opener: Opens a safetensors file.

    Attributes:
        folder: The weightwatch folder of the watched run; None if the run was not watched.
        adapters: The adapters' parameters at the start of the watched run; see ``theta0.recorded_adapters``.
        source: θ₀ on disk, or the base of adapters; None if the base is not on this machine.

    Raises:
        WeightWatchError: θ₀ of a full checkpoint is unknown or can't be read, or a direction was built from another
            base.
    """

    def __init__(
        self, first: SavedCheckpoint, given: str | None, directions: Sequence[Direction], opener: Opener
    ) -> None:
        self._given, self._opener = given, opener
        self.folder = _live_folder(first)
        self.adapters: Mapping[str, Tensor] = recorded_adapters(self.folder) if self.folder is not None else {}
        self.source: Source | None = self._adapter_base(first) if first.adapter else self._weights(first)
        self._architecture = self._renaming(first, directions)
        if self._architecture is not None and isinstance(self.source, Checkpoint):
            self.source = self.open(self.source.path)
        if self.source is not None:
            sources = [self.source, *([] if first.adapter else [self.open(first.path)])]
            for direction in directions:
                direction.require(SavedBase(*sources), self.name)
        self._signature = self.signature()

    @property
    def name(self) -> str:
        """Path of θ₀: a checkpoint, or the weightwatch folder of the run; empty if it is not on this machine."""
        match self.source:
            case None:
                return ""
            case Checkpoint(path=path):
                return str(path)
            case _:
                return str(self.folder)

    @property
    def recorded(self) -> Reference:
        """The reference that the watched run recorded; an empty one if the run was not watched."""
        return Reference(recorded_weights(self.folder) if self.folder is not None else None, self.adapters)

    def sources(self) -> list[Source]:
        """Return where θ₀ of tensors beside an adapter's factors is looked up: what the run recorded, then the base."""
        if self.folder is not None and not self._given:
            self._require_recorded(self.folder)
        recorded = recorded_weights(self.folder, self._opener) if self.folder is not None else None
        return [source for source in (recorded, self.source) if source is not None]

    def weights(self, checkpoint: SavedCheckpoint) -> Source:
        """Return θ₀ of a full checkpoint.

        Raises:
            WeightWatchError: It is unknown.
        """
        if self.source is None:  # the first checkpoint was an adapter
            self.source = self._weights(checkpoint)
        return self.source

    def open(self, path: Path) -> Checkpoint:
        """Open a full checkpoint, under the parameter names of the model if the directions use those."""
        if self._architecture is not None:
            return InModelNames(path, self._architecture, self._opener)
        return Checkpoint(path, self._opener)

    def signature(self) -> list[object]:
        """Return what identifies θ₀, as JSON: its files, the watched run, and the time of ``reference.json``."""
        base = checkpoint_at(Path(self.name).resolve()) if self.name else None
        note = (self.folder / NOTE).stat().st_mtime_ns if self.folder is not None else 0
        return [base and (base.path, base.signature), self.folder, note]

    @property
    def rewritten(self) -> bool:
        """Whether θ₀ was written to since it was found."""
        return self.signature() != self._signature

    def _weights(self, checkpoint: SavedCheckpoint) -> Source:
        if self._given:
            return Checkpoint(locate(self._given), self._opener)
        if self.folder is not None:
            self._require_recorded(self.folder)
            try:
                source = recorded_weights(self.folder, self._opener)
            except WeightWatchError as error:
                reason = str(error).partition(" Pass reference=")[0].rstrip(".")  # a scan has --reference instead
                raise WeightWatchError(
                    f"θ₀ recorded in {self.folder / NOTE} can't be read ({reason}). Pass --reference, its path or Hub "
                    "id."
                ) from error
            if source is not None:
                return source
        here = checkpoint.folder.resolve()
        named = field(here / "config.json", "_name_or_path")
        folder = local_folder(named)
        if folder is None or folder == here:
            missing = ", which is not on this machine" if named and folder is None else ""
            raise WeightWatchError(
                f"θ₀ of {checkpoint.path} is unknown: there is no weightwatch/{NOTE} of its run beside it, and its "
                f"config names {named or 'no base'}{missing}. Pass --reference, the path or Hub id of the checkpoint "
                "that training started from."
            )
        _logger.warning("weightwatch: θ₀ is read from %s, which the checkpoint's config names.", folder)
        return Checkpoint(folder, self._opener)

    def _require_recorded(self, folder: Path) -> None:
        if field(folder / NOTE, "weights") == "given":
            raise WeightWatchError(
                f"The run in {folder.parent} was started with an explicit reference=. Pass it as --reference."
            )

    def _adapter_base(self, adapter: SavedCheckpoint) -> Source | None:
        """Return the base of an adapter; None if it is not on this machine."""
        if self._given:
            return Checkpoint(locate(self._given), self._opener)
        named = field(adapter.home / CONFIG, "base_model_name_or_path")
        folder = local_folder(named)
        try:
            if folder is not None:
                return Checkpoint(folder, self._opener)
        except WeightWatchError as error:
            _logger.warning("weightwatch: %s", error)
        _logger.warning(
            "weightwatch: the base of %s (%s) is not on this machine, so it was not compared with the base of the "
            "directions. Pass --reference to compare them.",
            adapter.path,
            named or "not named",
        )
        return None

    def _renaming(self, first: SavedCheckpoint, directions: Sequence[Direction]) -> Architecture | None:
        """Return the model whose parameter names the directions use, if the files have other names; else None."""
        wanted = {name for direction in directions for name in direction.deltas if indexed(name)}
        files = [self.source] if isinstance(self.source, Checkpoint) else []
        files += [] if first.adapter else [Checkpoint(first.path, self._opener)]
        if all(wanted <= set(file) for file in files):
            return None
        folders = [first.folder, *(file.path for file in files)]
        folder = next((folder for folder in folders if (folder / "config.json").is_file()), None)
        try:
            model = Architecture(folder) if folder is not None else None
        except Exception as error:  # raised by a model's own code, or by another version of transformers
            _logger.warning(
                "weightwatch: the parameter names of the model can't be derived from the config in %s (%s). The names "
                "in the files are used.",
                folder,
                error,
            )
            return None
        if model is None or not any(wanted & set(InModelNames(file.path, model)) - set(file) for file in files):
            return None
        return model


def _live_folder(checkpoint: SavedCheckpoint) -> Path | None:
    """Return the weightwatch folder with θ₀ of a checkpoint's run; None if the run was not watched.

    The folder of checkpoints may have those of several runs: a new run leaves what the one before it saved.
    """
    here = checkpoint.folder.resolve()
    found = (start_of(folder / "weightwatch", checkpoint.run) for folder in (here, here.parent))
    return next((folder for folder in found if folder is not None and (folder / NOTE).is_file()), None)
