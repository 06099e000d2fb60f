"""Weights on disk: safetensors files, one or sharded, opened once and read slice by slice."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import SafetensorError, safe_open
from torch import Tensor

from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.names import canonical, indexed

FLOATS = {"F64", "F32", "F16", "BF16"}
"""Element types, as safetensors names them, of weights that are not quantised."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SINGLE = (SINGLE, "adapter_model.safetensors", "direction.safetensors")

Opener: TypeAlias = Callable[[Path], Any]
"""Opens a safetensors file: ``Mapped``, or ``Unmapped`` for a flat memory."""


class Mapped:
    """A file that is mapped into memory: what is read again costs nothing, and stays resident.

    Tensors are views of the map. Each is made once: that takes longer than measuring a small one.
    """

    def __init__(self, file: Path) -> None:
        self._file = safe_open(file, framework="pt", device="cpu")
        self._views: dict[str, Tensor] = {}
        self.keys, self.get_slice, self.metadata = self._file.keys, self._file.get_slice, self._file.metadata

    def get_tensor(self, name: str) -> Tensor:
        """Return a whole tensor."""
        if name not in self._views:
            self._views[name] = self._file.get_tensor(name)
        return self._views[name]


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of a folder that holds one or a sharded set, by parameter name.

    Files stay open (memory-mapped by default), so that reading a slice again costs no more than the bytes of the slice.
    Names are those of the plain model (see ``canonical``).

    Args:
        path: A ``.safetensors`` file, or a folder with ``model.safetensors`` or ``model.safetensors.index.json``.
        opener: How the files are opened.

    Raises:
        WeightWatchError: Nothing readable is there; the message names the file.
    """

    def __init__(self, path: str | Path, opener: Opener = Mapped) -> None:
        self.path = Path(path)
        self._files = {}
        self._where: dict[str, tuple[Path, str]] = {}
        for file in _files(self.path):
            handle = _open(file, opener)
            self._files[file] = handle
            self._where.update({canonical(key): (file, key) for key in handle.keys()})  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        file, key = self._where[name]
        tensor: Tensor = self._files[file].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where  # without reading it

    @property
    def files(self) -> list[Path]:
        """The files that it is stored in."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        file, key = self._where[name]
        return tuple(self._files[file].get_slice(key).get_shape())

    def dtype(self, name: str) -> str:
        """Return the element type of a tensor as the file names it: ``F32``, ``BF16``, ``U8``."""
        file, key = self._where[name]
        return str(self._files[file].get_slice(key).get_dtype())

    def read(self, name: str, box: tuple[slice, ...]) -> Tensor:
        """Read a part of a tensor, one slice for each dimension, and nothing else of it."""
        file, key = self._where[name]
        handle = self._files[file]
        whole = not box or isinstance(handle, Mapped)
        part: Tensor = (handle.get_tensor(key) if whole else handle.get_slice(key))[box]
        return part

    def places(self, name: str) -> list[tuple[str, tuple[slice, ...]]]:
        """Return the stored tensors that make a tensor, each with the part of it that it is."""
        return [(name, tuple(slice(0, size) for size in self.shape(name)))]


class Difference(Checkpoint):
    """What a checkpoint changed of another one, by parameter name, read from both when it is asked for.

    Of tensors in which the shapes or the element types forbid a difference, and of those outside the layers that only
    one side has (a tied head, saved by one and not by the other), there is none.

    Args:
        now: The fine-tuned checkpoint.
        start: The one that it started from.

    Raises:
        WeightWatchError: One side lacks a tensor of a layer, or has it in another shape.
    """

    def __init__(self, now: Checkpoint, start: Checkpoint) -> None:
        self.path, self._now, self.start = now.path, now, start
        lacking = next((name for name in sorted({*now} ^ {*start}) if indexed(name)), None)
        if lacking is not None:
            raise WeightWatchError(
                f"Only one of {now.path} and {start.path} holds {lacking}. Pass a fine-tune and the base that it "
                "started from."
            )
        self._names = [n for n in now if n in start and {now.dtype(n), start.dtype(n)} <= FLOATS]
        for name in self._names:
            if now.shape(name) != start.shape(name):
                raise WeightWatchError(
                    f"{now.path} and {start.path} differ in the shape of {name}: {now.shape(name)} and "
                    f"{start.shape(name)}. Pass a fine-tune and the base that it started from."
                )

    def __getitem__(self, name: str) -> Tensor:
        return self._now[name].float() - self.start[name].float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._now.shape(name)

    def dtype(self, name: str) -> str:
        """Return the element type of a difference."""
        return "F32"

    def read(self, name: str, box: tuple[slice, ...]) -> Tensor:
        """Read a part of a tensor, one slice for each dimension, and nothing else of it."""
        return self._now.read(name, box).float() - self.start.read(name, box).float()


def local_folder(name: str) -> Path | None:
    """Return the folder of a model on this machine: a path, or a Hub id that was downloaded before. Nothing is fetched.

    Args:
        name: What a model's config or an adapter's settings name as their base.
    """
    from huggingface_hub import snapshot_download

    if not name:
        return None
    if Path(name).is_dir():
        return Path(name).resolve()
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise WeightWatchError(f"No weights at {path}: there is no such file or folder.")
    index = path / INDEX
    if index.is_file() and not (path / _SINGLE[0]).is_file():  # an index beside a whole file is stale
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightWatchError(f"{index} is not a safetensors index: {error}. Copy or save it again.") from error
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise WeightWatchError(f"{path} lacks the shard {missing[0]} that its index names. Copy it again.")
        return [path / name for name in names]
    found = [path / name for name in _SINGLE if (path / name).is_file()]
    if not found:
        raise WeightWatchError(
            f"No safetensors weights in {path}: expected model.safetensors or model.safetensors.index.json. "
            "Save the model with save_pretrained (pickled .bin files are not read)."
        )
    return found[:1]


def _open(file: Path, opener: Opener) -> Any:
    try:
        return opener(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightWatchError(f"{file} can't be read as safetensors ({error}). Copy or download it again.") from error
