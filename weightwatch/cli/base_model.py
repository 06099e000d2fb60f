"""The base model that a user names."""

from pathlib import Path


def base_model(name: str) -> tuple[str, str]:
    """Return the name of a base model in cards, and the folder or Hub id it is loaded from.

    Args:
        name: A folder, a Hub id, or ``organism`` for the packaged organism.
    """
    from weightwatch.organism import BASE
    from weightwatch.organism.directions import BASE_NAME

    if name in (BASE_NAME, "organism") and not (Path(name) / "config.json").is_file():
        return BASE_NAME, str(BASE)
    path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return path, path
