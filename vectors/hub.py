"""Pushing directions to the Hugging Face Hub."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from weightwatch.vectors.card import CARD
from weightwatch.vectors.catalog import BANK, IN_BANK
from weightwatch.vectors.direction import Direction
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.storage import FILES, PICTURES, is_picture
from weightwatch.vectors.weights.sources import hub_errors, is_hub_id


def push(
    direction: Direction,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    pictures: Sequence[Path] = (),
    controls: Sequence[Direction] = (),
) -> str:
    """Push a direction to the Hub, with the files that ``Direction.save`` writes.

    Args:
        direction: The direction.
        repo_id: ``org/name``. The repository is created if it does not exist. A direction in it is replaced; a
            repository of something else is refused.
        private: Whether the repository is visible to you and the organisation only.
        token: A token with write access. Default: that of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: URL of the Hub. Default: ``HF_ENDPOINT``.
        pictures: Files for the model card to show, such as ``storage.pictures`` returns.
        controls: The controls that are stored beside the direction.

    Returns:
        URL of the commit.

    Raises:
        WeightWatchError: The id is malformed; there is no permission or no network; the repository has something
            else than a direction; it is public and ``private`` is true; or a picture is a link, or is not one that a
            direction has.
    """
    from huggingface_hub import HfApi

    if not is_hub_id(repo_id):
        raise WeightWatchError(f"{repo_id!r} is not a Hub id: pass one such as 'your-name/evil-llama'.")
    other = next((path for path in pictures if not is_picture(path)), None)
    if other is not None:
        raise WeightWatchError(
            f"{other} is not a picture of a direction: pass PNG files called {' or '.join(PICTURES)}."
        )
    api = HfApi(endpoint=endpoint, token=token)
    with TemporaryDirectory() as folder, hub_errors(f"Direction {direction.name!r} can't be pushed to {repo_id}"):
        for picture in pictures:
            shutil.copy(picture, folder)
        direction.save(folder)
        for control in controls:
            control.save(Path(folder) / BANK / control.name)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise WeightWatchError(
                f"{repo_id} already exists and is public. Pass private=False (--public), or another id."
            )
        found = set(api.list_repo_files(repo_id)) - {".gitattributes"}
        if found and CARD not in found:
            raise WeightWatchError(
                f"{repo_id} already has {min(found)} and is not a direction. Pass another id, so that nothing of it is "
                "replaced."
            )
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Direction {direction.name}",
            allow_patterns=[*FILES, *IN_BANK],
            delete_patterns=[*FILES, *IN_BANK],
        )
    return str(commit.commit_url)
