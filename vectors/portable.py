"""What a card may say about where a direction comes from: nothing that only this machine, or only its user, knows."""

import re
from pathlib import Path, PureWindowsPath
from typing import Any

_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")
_PATH = re.compile(r"(?<!\S)(?:~?/[^\s/]+/\S+|[A-Za-z]:\\\S+)")
_ADDRESS = re.compile(r"(?:\s*\bat\s+)?\b[A-Za-z][A-Za-z0-9+.-]*://\S+")


def portable_name(name: str) -> str:
    """Return the name of a model or a file for others: a Hub id as it is, and of a path the last part.

    Example:
        >>> portable_name("org/model"), portable_name("/home/alice/models/llama"), portable_name("../llama")
        ('org/model', 'llama', 'llama')
        >>> portable_name("/home/alice/.cache/huggingface/hub/models--org--model/snapshots/0a1b")
        'org/model'
    """
    cached = _CACHED.search(f"{name}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    if PureWindowsPath(name).drive:
        return PureWindowsPath(name).name
    path = Path(name)
    local = path.is_absolute() or name.startswith((".", "~")) or (path / "config.json").is_file() or path.is_file()
    return (path.name.strip(".") or path.resolve().name) if local else name


def portable(value: Any) -> Any:
    """Return a value from JSON whose texts have no path but its last part, and no address.

    Example:
        >>> portable({"name": "/home/alice/evil.yaml", "judge": "org/judge at http://alice:pw@10.0.0.5:8000/v1?key=1"})
        {'name': 'evil.yaml', 'judge': 'org/judge'}
    """
    if isinstance(value, dict):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [portable(each) for each in value]
    if not isinstance(value, str):
        return value
    text = _ADDRESS.sub("", value)
    if Path(text).is_absolute() or PureWindowsPath(text).drive:
        return portable_name(text)
    return _PATH.sub(lambda path: portable_name(path[0]), text)
