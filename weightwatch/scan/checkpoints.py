"""Checkpoints on disk: which ones a folder contains, their order, and whether each is complete."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightwatch.record.run_folder import carried
from weightwatch.update.peft.lora import REF
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.adapter_config import CONFIG, PICKLED, WEIGHTS, is_adapter
from weightwatch.vectors.weights.checkpoint import INDEX, SINGLE, ShardIndex
from weightwatch.vectors.weights.gguf import refuse_gguf
from weightwatch.vectors.weights.peft_adapter import pickled
from weightwatch.vectors.weights.reader import whole_size
from weightwatch.vectors.weights.sources import fetch, is_hub_id

STATE = "trainer_state.json"

_STEPS = 2**53  # more than a training has, and than JSON readers keep exactly
_NUMBER = re.compile(r"(?:^|[-_]|checkpoint|ckpt|step|epoch|iter)(\d+)(?=$|[-_])")


@dataclass(frozen=True)
class SavedCheckpoint:
    """One checkpoint: full weights, or an adapter.

    Attributes:
        path: Its folder or file.
        step: Optimizer step at which it was written; the epoch, if its name has only that.
        adapter: Whether it is a PEFT adapter.
        within: Name of the subfolder with the adapter's files; empty if they are in the folder itself. PEFT saves an
            adapter that is not called ``default`` to a subfolder of its name.
    """

    path: Path
    step: int
    adapter: bool
    within: str = ""

    @property
    def home(self) -> Path:
        """Folder of its weights; the file, if it is one."""
        return self.path / self.within

    @property
    def other_adapters(self) -> list[str]:
        """Names of further adapters that were saved with it, other than TRL's copy of its start."""
        return [name for name in _nested(self.path) if name != self.within] if self.adapter else []

    @property
    def pickled(self) -> Path | None:
        """The adapter's file if it is pickled, and so is not read."""
        found = self.home / PICKLED
        return found if self.adapter and found.is_file() and not (self.home / WEIGHTS).is_file() else None

    @property
    def name(self) -> str:
        """Name of the folder or file, which readings and alerts show."""
        return self.path.name

    @property
    def folder(self) -> Path:
        """Folder that contains its config."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def run(self) -> str | None:
        """Id of the watched run that wrote it; None if it carries none."""
        return carried((content(self.folder / STATE) or {}).get("stateful_callbacks"))

    @property
    def size(self) -> int:
        """Size of its files in bytes."""
        return sum(size for _, size, _ in self.signature)

    @property
    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and modification time of each file. It changes when the checkpoint is rewritten."""
        return tuple((file.name, about.st_size, about.st_mtime_ns) for file, about in self._files())

    @property
    def version(self) -> Mapping[Path, object]:
        """What identifies the content of each file on this disk."""
        return {file: (about.st_size, about.st_mtime_ns, about.st_ino) for file, about in self._files()}

    def rewritten(self, since: Mapping[Path, object]) -> bool:
        """Whether a file has another content since its ``version`` was taken, or is new.

        A deleted file does not count: it is read to its end if it was open.
        """
        return any(since.get(file) != content for file, content in self.version.items())

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for file in (*_weight_files(self.home), self.home / INDEX, self.home / CONFIG):
            try:
                yield file, file.stat()
            except OSError:
                continue  # deleted since the folder was listed

    def incomplete(self) -> str | None:
        """Return why the checkpoint is incomplete; None if it is complete."""
        if self.path.is_file():
            return _missing_bytes(self.path)
        if self.pickled is not None:
            return f"{PICKLED} is pickled, and pickled files are not read"
        if self.adapter:
            unread = None if content(self.home / CONFIG) is not None else f"{CONFIG} is incomplete"
            return _missing_bytes(self.home / WEIGHTS) or unread
        if (self.path / SINGLE).is_file():
            return _missing_bytes(self.path / SINGLE)
        if not (self.path / INDEX).is_file():
            return f"it has neither {SINGLE} nor {INDEX}"
        try:
            shards = ShardIndex.read(self.path / INDEX).shards
        except WeightWatchError as error:
            return f"{INDEX} is damaged or incomplete ({error})"
        return next((reason for shard in shards if (reason := _missing_bytes(self.path / shard))), None)

    @property
    def closed(self) -> bool:
        """Whether a Trainer has written ``trainer_state.json``, which comes after the weights."""
        return _state_step(self.path) is not None


def checkpoint_at(path: Path) -> SavedCheckpoint | None:
    """Return the checkpoint at a path, complete or not; None if there is none."""
    if path.is_file():
        return SavedCheckpoint(path, _step(path), False) if path.suffix == ".safetensors" else None
    if is_adapter(path):
        return SavedCheckpoint(path, _step(path), True)
    if (path / INDEX).is_file() or any(_weight_files(path)):
        return SavedCheckpoint(path, _step(path), False)
    nested = _nested(path)
    if len(nested) == 1 or (nested and _state_step(path) is not None):
        return SavedCheckpoint(path, _step(path), True, nested[0])
    return None


def run(folder: Path) -> list[SavedCheckpoint]:
    """Return the checkpoints in a run's folder by step, including those that are still being written.

    A subfolder counts if it contains safetensors weights and its step is known from ``trainer_state.json`` or from the
    last number in its name. A link to another checkpoint in the folder (``latest``) does not count.
    """
    found = []
    for path in folder.iterdir():
        if path.is_symlink() and path.resolve().parent == folder.resolve():
            continue
        if path.is_dir() and (_NUMBER.search(path.name) or _state_step(path) is not None):
            one = checkpoint_at(path)
            if one is not None:
                found.append(one)
    return sorted(found, key=lambda one: (one.step, one.name))


def find(what: Path) -> tuple[list[SavedCheckpoint], bool]:
    """Return the checkpoints at a path, and whether it is a run.

    A folder that contains checkpoints is a run, even if it also contains a final model.

    Raises:
        WeightWatchError: There is no checkpoint, or the only one is incomplete.
    """
    if what.is_dir() and (several := run(what)):
        files = [one.pickled for one in several]
        if files[0] is not None and all(files):
            raise WeightWatchError(pickled(files[0]))
        return several, True
    one = checkpoint_at(what)
    if one is None:
        if not what.exists():
            raise WeightWatchError(f"No checkpoint at {what}: there is no such file or folder.")
        refuse_gguf(what)
        raise WeightWatchError(
            f"No checkpoint in {what}: expected safetensors weights ({SINGLE}, {INDEX}, {CONFIG} with {WEIGHTS}), or "
            "subfolders such as checkpoint-100 that contain them. Pickled .bin files are not read."
        )
    if one.pickled is not None:
        raise WeightWatchError(pickled(one.pickled))
    reason = one.incomplete()
    if reason is not None:
        raise WeightWatchError(f"{what} is incomplete: {reason}. Copy it again, or wait until it is written.")
    return [one], False


def locate(what: str) -> Path:
    """Return a path unchanged, or the folder of a Hub id, downloaded if it is not in the cache.

    Raises:
        WeightWatchError: The Hub id can't be downloaded.
    """
    return fetch(what, allow=["*.safetensors", "*.json"]) if is_hub_id(what) else Path(what)


def content(file: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file; None if the file is missing or incomplete."""
    if not file.is_file():  # opening a pipe would wait for a writer
        return None
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def field(file: Path, key: str) -> str:
    """Return one entry of a JSON file as text; empty if it has none."""
    return str((content(file) or {}).get(key) or "")


def _weight_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith("reference-"))


def _nested(path: Path) -> list[str]:
    """Return the names of the adapters in subfolders of a checkpoint, without TRL's copy of another one's start."""
    found = sorted(config.parent for config in path.glob(f"*/{CONFIG}")) if path.is_dir() else []
    return [folder.name for folder in found if is_adapter(folder) and folder.name != REF]


def _missing_bytes(file: Path) -> str | None:
    """Return why a safetensors file is incomplete; None if it is complete."""
    try:
        size, wanted = file.stat().st_size, whole_size(file)
    except OSError:
        return f"{file.name} is missing"
    except ValueError as error:
        return f"{file.name} is cut short or damaged ({error})"
    return None if size == wanted else f"{file.name} has {size} of {wanted} bytes"


def _step(path: Path) -> int:
    if path.is_file():
        numbers = _NUMBER.findall(path.stem) if path.name != SINGLE else []
        return int(numbers[-1]) if numbers else _step(path.resolve().parent)
    known = _state_step(path)
    numbers = _NUMBER.findall(path.name)
    return known if known is not None else int(numbers[-1]) if numbers else 0


def _state_step(path: Path) -> int | None:
    step = (content(path / STATE) or {}).get("global_step")
    return step if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _STEPS else None
