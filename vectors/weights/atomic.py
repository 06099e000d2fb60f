"""Writing a folder as a whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from weightwatch.vectors.errors import WeightWatchError


@contextmanager
def whole_folder(out: str | Path) -> Iterator[Path]:
    """Give a folder beside ``out`` to write to, which takes its name when all has gone well, and else goes away.

    Args:
        out: Not there yet, or an empty folder.

    Raises:
        WeightWatchError: Something is there already, or nothing can be written there.
    """
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise WeightWatchError(f"{out} is there already and is not empty. Pass the name of a new folder.")
    draft = out.parent / f".{out.name}.{uuid4().hex[:8]}.part"
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
