"""Writing a file or a folder completely or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from weightwatch.vectors.errors import WeightWatchError


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """Yield a draft folder beside ``out``. It is renamed to ``out`` after the block, and removed if the block raises.

    Args:
        out: A folder that does not exist yet, or is empty.

    Raises:
        WeightWatchError: ``out`` exists and is not empty, or can't be written.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise WeightWatchError(f"{out} already exists and is not empty. Pass the name of a new folder.")
    draft = _draft(out)
    try:
        draft.mkdir(parents=True)
        yield draft
        if out.exists():
            out.rmdir()
        draft.replace(out)
    except OSError as error:
        raise WeightWatchError(f"{out} can't be written ({error}). Make room there, or pass another folder.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Yield a draft's path beside ``out``. It replaces ``out`` after the block, and is removed if the block raises.

    Args:
        out: The file, in an existing folder.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder, "note.txt")) as draft:
        ...         written = draft.write_text("all of it")
        ...     [file.name for file in Path(folder).iterdir()]
        ['note.txt']
    """
    draft = _draft(out)
    try:
        yield draft
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


def write_text(out: Path, text: str) -> None:
    """Write a text file as UTF-8, completely or not at all."""
    with whole_file(out) as draft:
        draft.write_text(text, encoding="utf-8")


def _draft(out: Path) -> Path:
    """Return a name that nothing else has: several processes may write at once."""
    return out.parent / f".{out.name}.{uuid4().hex[:8]}.part"
