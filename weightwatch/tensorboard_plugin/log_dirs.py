"""The folders that TensorBoard was started with, and the records of runs in them."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightwatch.record.history import READINGS
from weightwatch.record.run_folder import NOTE

_URL = re.compile(r"[a-zA-Z][0-9a-zA-Z.]*://")
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class Found:
    """What lies in the log dirs.

    Attributes:
        records: The folder of each run's record, by the name of the run.
        elsewhere: Event folders of runs whose record is not in a log dir, and the output folder of each. It is None
            where the events are not in the output folder.
        links: Links that lead out of the log dirs. They are not followed.
        events: Whether there are event files at all, of weightwatch or of others.
    """

    records: dict[str, Path] = field(default_factory=dict)
    elsewhere: dict[Path, Path | None] = field(default_factory=dict)
    links: list[Path] = field(default_factory=list)
    events: bool = False


class LogDirs:
    """The log dirs of a TensorBoard, which are all that the tab may read.

    Args:
        folders: The folders, each with the name of its runs' group; empty for no group.
    """

    def __init__(self, folders: Mapping[Path, str]) -> None:
        self._groups = {folder.expanduser().resolve(): group for folder, group in folders.items()}

    @classmethod
    def of(cls, flags: Any) -> "LogDirs":
        """Return the folders that TensorBoard's flags ``--logdir`` and ``--logdir_spec`` name.

        Folders that are not on this machine's disks (``gs://…``) are left out.
        """
        folders: dict[Path, str] = {}
        if flags.logdir and not _URL.match(flags.logdir):
            folders[Path(flags.logdir)] = ""
        for part in (flags.logdir_spec or "").split(","):
            grouped = ":" in part and not part.startswith("/") and not os.path.splitdrive(part)[0]
            group, path = part.split(":", 1) if grouped else ("", part)
            if path and not _URL.match(part):
                folders[Path(path)] = group
        return cls(folders)

    @property
    def folders(self) -> list[Path]:
        """The folders, resolved."""
        return list(self._groups)

    def hold(self, path: Path) -> bool:
        """Whether a path, after all links, is a regular file in one of the folders."""
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links that lead to each other
            return False
        return real.is_file() and any(real.is_relative_to(folder) for folder in self._groups)

    def search(self) -> Found:
        """Return the records, and what tells of others. Hidden folders and checkpoints have none."""
        found, events = Found(), False
        for root, group in self._groups.items():
            for folder, folders, files in _walk(root, found.links):
                with_events = any(name.startswith("events.out.tfevents") for name in files)
                events = events or with_events
                if READINGS in files or (NOTE in files and folder.name.startswith("weightwatch")):
                    name = _name(folder, root, group)
                    found.records[name if name not in found.records else str(folder)] = folder
                elif with_events:
                    self._note_events(folder, found.elsewhere)
                folders[:] = sorted(name for name in folders if name[0] != "." and not _CHECKPOINT.fullmatch(name))
        return replace(found, events=events)

    def _note_events(self, folder: Path, elsewhere: dict[Path, Path | None]) -> None:
        """Note an event folder whose record is in none of the log dirs."""
        if folder.name == "weightwatch" and folder.parent.name == "runs":
            output = folder.parent.parent
            if not any(output.is_relative_to(root) for root in self._groups):
                elsewhere[folder] = output
        elif folder.name.endswith("-weightwatch"):
            elsewhere[folder] = None


def _walk(root: Path, links: list[Path]) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, folders, files in os.walk(root):
        place = Path(folder)
        outside = [place / name for name in folders if (place / name).is_symlink()]
        links += [link for link in outside if not link.resolve().is_relative_to(root)]
        yield place, folders, files


def _name(folder: Path, root: Path, group: str) -> str:
    """Return the name of a run: the path of its output folder in the log dir."""
    output = folder.parent if folder.name == "weightwatch" else folder
    name = output.relative_to(root).as_posix() if output.is_relative_to(root) else "."
    name = (output.name if not group else "") if name == "." else name
    return "/".join(filter(None, [group, name]))
