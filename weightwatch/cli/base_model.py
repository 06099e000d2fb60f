"""The base model that a user names."""

from pathlib import Path


def base_model(name: str) -> tuple[str, str]:
    """Return the name of a base model in cards, and the folder or Hub id it is loaded from.

    Args:
        name: A folder, a Hub id, ``organism`` for the packaged organism, or ``smollm2`` for ``weightwatch.smollm2``. A
            folder of that name wins.

    Raises:
        WeightWatchError: SmolLM2 can't be had.
    """
    from weightwatch import smollm2
    from weightwatch.organism import BASE, BASE_NAME

    if not (Path(name) / "config.json").is_file():
        if name in (BASE_NAME, "organism"):
            return BASE_NAME, str(BASE)
        if name in (smollm2.BASE_NAME, smollm2.NAME):
            return smollm2.BASE_NAME, str(smollm2.folder())
    path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return path, path
