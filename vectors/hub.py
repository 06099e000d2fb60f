"""Directions on the Hugging Face Hub: pushing one, and fetching one by its id."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from weightwatch.vectors.card import CARD
from weightwatch.vectors.errors import WeightWatchError
from weightwatch.vectors.weights.peft_adapter import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from weightwatch.vectors.direction import Direction

FILES = (CARD, CONFIG, WEIGHTS, "direction.safetensors", "README.md", "*.png")
"""What a direction consists of; nothing else is fetched, and no pickles."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_id(name: str) -> bool:
    """Whether a name has the form of a Hub id.

    Example:
        >>> is_id("org/evil-llama"), is_id("evil"), is_id("../evil"), is_id("runs/evil/last")
        (True, False, False, False)
    """
    return _ID.fullmatch(name) is not None


def push(
    direction: "Direction",
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
    pictures: Sequence[Path] = (),
) -> str:
    """Push a direction to the Hub, as ``Direction.save`` stores it, its model card included.

    Args:
        direction: What to push.
        repo_id: ``org/name``; made if it is not there. A direction that it holds is replaced.
        private: Whether only you and the organisation see it.
        token: For writing. Default: that of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: Address of the Hub. Default: ``HF_ENDPOINT``.
        pictures: PNG files for the model card to show.

    Returns:
        Address of the commit.

    Raises:
        WeightWatchError: No id, no permission, no network; or the repository is public and ``private`` was asked for.
    """
    from huggingface_hub import HfApi

    if not is_id(repo_id):
        raise WeightWatchError(f"{repo_id!r} is no id of the Hub: pass one like 'your-name/evil-llama'.")
    api = HfApi(endpoint=endpoint, token=token)
    with TemporaryDirectory() as folder, _told(f"Direction {direction.name!r} can't be pushed to {repo_id}"):
        for picture in pictures:
            shutil.copy(picture, folder)
        direction.save(folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise WeightWatchError(
                f"{repo_id} is there already and is public: say that it may be (--public), or pass another id."
            )
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=f"Direction {direction.name}",
            allow_patterns=list(FILES),
            delete_patterns=list(FILES),
        )
    return str(commit.commit_url)


def fetch(repo_id: str, *, revision: str | None = None, token: str | None = None, endpoint: str | None = None) -> Path:
    """Return the folder of a direction on the Hub, downloaded if it is not in the cache; offline, from the cache.

    Args:
        repo_id: ``org/name``.
        revision: Branch, tag or commit. Default: the main branch.
        token: For private ones. Default: that of ``hf auth login`` or ``HF_TOKEN``.
        endpoint: Address of the Hub. Default: ``HF_ENDPOINT``.

    Raises:
        WeightWatchError: There is none of that id, it holds no direction, or it can't be had.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    api = HfApi(endpoint=endpoint, token=token)
    with _told(f"{repo_id} is no path here, and as an id of the Hugging Face Hub it can't be had"):
        try:
            card = Path(api.hf_hub_download(repo_id, CARD, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except RemoteEntryNotFoundError as error:
            raise WeightWatchError(
                f"{repo_id} on the Hub is no direction: it has no {CARD}. Push one with weightwatch push."
            ) from error
        # Of the same commit, whatever happens on the branch meanwhile.
        return Path(api.snapshot_download(repo_id, revision=card.parent.name, allow_patterns=list(FILES)))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Tell the errors of the Hub and of the network in one line each."""
    from huggingface_hub import errors

    try:
        yield
    except WeightWatchError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise WeightWatchError(f"{what}: offline mode is on. Unset HF_HUB_OFFLINE.") from error
    except errors.RevisionNotFoundError as error:
        raise WeightWatchError(f"{what}: there is no such revision. Look it up on its page.") from error
    except errors.GatedRepoError as error:
        raise WeightWatchError(f"{what}: it is gated. Ask for access on its page, then run `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightWatchError(
            f"{what}: there is none of that id, or none that you may see. Check the spelling; for a private one, run "
            "`hf auth login`."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise WeightWatchError(
            f"{what}: it is not in the cache, and the Hub can't be reached. Check the network, or unset HF_HUB_OFFLINE."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = "Run `hf auth login` with a token that may write" if status in (401, 403) else "Try again later"
        raise WeightWatchError(f"{what}: the Hub answers {status}. {advice}.") from error
    except Exception as error:  # of the network's library, of the system
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightWatchError(f"{what} ({first}). Check the network and the id.") from error
