"""Checkpoints on disk: what a folder holds, in which order, and whether each of them is whole."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.checkpoint import INDEX, SINGLE
from weightwatch.vectors.weights.peft_adapter import CONFIG, WEIGHTS, is_adapter
from weightwatch.vectors.weights.reader import whole_size
from weightwatch.vectors.weights.sources import fetch, is_hub_id

STATE = "trainer_state.json"

_NUMBER = re.compile(r"(?:^|[-_]|checkpoint|ckpt|step|epoch|iter)(\d+)(?=$|[-_])")


@dataclass(frozen=True)
class Stored:
    """One checkpoint: full weights, or an adapter.

    Attributes:
        path: Its folder, or its file.
        step: Optimizer steps (or epochs, where its name counts those) at which it was written.
        adapter: Whether it is a PEFT adapter.
    """

    path: Path
    step: int
    adapter: bool

    @property
    def name(self) -> str:
        """Name under which readings and alerts call it."""
        return self.path.name

    @property
    def folder(self) -> Path:
        """Where its settings lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(size for _, size, _ in self.signature)

    @property
    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and time of each of its files: another signature, another checkpoint."""
        found = []
        for file in (*_weight_files(self.path), self.path / INDEX, self.path / CONFIG):
            try:
                about = file.stat()
            except OSError:
                continue  # deleted between listing and looking
            found.append((file.name, about.st_size, about.st_mtime_ns))
        return tuple(found)

    def lacks(self) -> str | None:
        """Return what is not there yet, in words; None for a checkpoint whose files are whole."""
        if self.path.is_file():
            return _lacks_bytes(self.path)
        if self.adapter:
            unread = None if content(self.path / CONFIG) is not None else f"{CONFIG} is not whole"
            return _lacks_bytes(self.path / WEIGHTS) or unread
        if (self.path / SINGLE).is_file():
            return _lacks_bytes(self.path / SINGLE)
        if not (self.path / INDEX).is_file():
            return f"it has neither {SINGLE} nor {INDEX}"
        shards = (content(self.path / INDEX) or {}).get("weight_map")
        if not isinstance(shards, dict):
            return f"{INDEX} is damaged or not whole"
        shards = sorted(set(shards.values()))
        return next((lack for shard in shards if (lack := _lacks_bytes(self.path / shard))), None)

    @property
    def closed(self) -> bool:
        """Whether a Trainer has written what it writes after the weights."""
        return _state_step(self.path) is not None


def stored(path: Path) -> Stored | None:
    """Return the checkpoint that a file or folder is; None if it is none, nor becomes one."""
    if path.is_file():
        return Stored(path, _step(path), False) if path.suffix == ".safetensors" else None
    if is_adapter(path):
        return Stored(path, _step(path), True)
    if (path / INDEX).is_file() or any(_weight_files(path)):
        return Stored(path, _step(path), False)
    return None


def run(folder: Path) -> list[Stored]:
    """Return the checkpoints in a run's folder by their steps, those that are still being written included.

    A subfolder counts if it holds safetensors weights and its step is known: by ``trainer_state.json``, or by the last
    number in its name. A link to a checkpoint beside it (``latest``) is not one more.
    """
    found = []
    for path in folder.iterdir():
        if path.is_symlink() and path.resolve().parent == folder.resolve():
            continue
        if path.is_dir() and (_NUMBER.search(path.name) or _state_step(path) is not None):
            one = stored(path)
            if one is not None:
                found.append(one)
    return sorted(found, key=lambda one: (one.step, one.name))


def find(what: Path) -> tuple[list[Stored], bool]:
    """Return the checkpoints that a path means, and whether it is a run with several.

    A folder that has checkpoints in it is a run, even if a final model lies beside them.

    Raises:
        WeightWatchError: There is none.
    """
    if what.is_dir() and (several := run(what)):
        return several, True
    one = stored(what)
    if one is None:
        if not what.exists():
            raise WeightWatchError(f"No checkpoint at {what}: there is no such file or folder.")
        raise WeightWatchError(
            f"No checkpoint in {what}: expected safetensors weights ({SINGLE}, {INDEX}, {CONFIG} with {WEIGHTS}), or "
            "subfolders such as checkpoint-100 that hold some. Pickled .bin files are not read."
        )
    lack = one.lacks()
    if lack is not None:
        raise WeightWatchError(f"{what} is not whole: {lack}. Copy it again, or wait until it is written.")
    return [one], False


def locate(what: str) -> Path:
    """Return a path as it is, and the folder of a Hub id, which is downloaded if it is not in the cache.

    Raises:
        WeightWatchError: It is a Hub id, and can't be downloaded.
    """
    return fetch(what, allow=["*.safetensors", "*.json"]) if is_hub_id(what) else Path(what)


class Arrivals:
    """Watches a run's folder: tells each checkpoint once, when it is whole.

    Whole means that every file has the length that its header says, and that a Trainer has written its
    ``trainer_state.json``, which comes last, or else that nothing has changed since the look before.

    Args:
        folder: Where another process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: Mapping[Path, object] = {}
        self._told: dict[Path, object] = {}

    def look(self) -> list[Stored]:
        """Return what has become whole since the last look; one that was written again comes again."""
        try:
            found = run(self._folder)
        except OSError:  # a folder in it, or all of it, went away under our hands
            return []
        now = {one.path: one.signature for one in found}
        ready = []
        for one in found:
            mark = now[one.path]
            settled = one.closed or self._before.get(one.path) == mark
            if mark and settled and self._told.get(one.path) != mark and one.lacks() is None:
                self._told[one.path] = mark
                ready.append(one)
        self._before = now
        return ready


def follow(
    folder: Path,
    *,
    poll: float,
    until_idle: float | None = None,
    stop_after: int | None = None,
    wait: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[Stored]]:
    """Yield all checkpoints that have become whole so far, by their steps, whenever a new one has.

    Args:
        folder: A run's folder, to which another process writes.
        poll: Seconds between two looks.
        until_idle: End when nothing has become whole for so many seconds. None: go on until interrupted.
        stop_after: End after so many checkpoints.
        wait: Waits for some seconds.
        clock: Tells the time in seconds.
    """
    arrivals, here = Arrivals(folder), dict[Path, Stored]()
    last, count = clock(), 0
    while stop_after is None or count < stop_after:
        ready = arrivals.look()
        if ready:
            count += len(ready)
            here.update({one.path: one for one in ready})
            here = {path: one for path, one in here.items() if path.exists()}
            yield sorted(here.values(), key=lambda one: (one.step, one.name))
            last = clock()
            continue
        if until_idle is not None and clock() - last >= until_idle:
            return
        wait(poll)


def content(file: Path) -> dict[str, Any] | None:
    """Return what a JSON file holds; None where it is missing or not whole."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def field(file: Path, key: str) -> str:
    """Return one entry of a JSON file; empty where there is none."""
    return str((content(file) or {}).get(key) or "")


def _weight_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith("reference-"))


def _lacks_bytes(file: Path) -> str | None:
    """Return what a safetensors file lacks, in words."""
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
    return step if isinstance(step, int) else None
