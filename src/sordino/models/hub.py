"""Models of the Hugging Face Hub: from the hub's cache on this machine if complete, else downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sordino.errors import ModelError, StorageError
from sordino.models.fingerprint import weight_files
from sordino.models.hub_answers import Progress, refusal, reporting
from sordino.storage import storage_errors

_SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_PICKLES = ["pytorch_model*.bin"]
# Folders of a repository hold other formats; `consolidated` is Mistral's second copy of the weights.
_NOT_WANTED = ["*/*", "consolidated*"]
# The account and the title of transformers' own conversion of pickled weights.
_CONVERTER, _CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"


def snapshot(
    model_id: str, *, notify: Callable[[str], None], near_misses: str, progress: Progress | None = None
) -> Path:
    """The folder of a hub model, downloaded if necessary and HF_HUB_OFFLINE permits. Raises ModelError.

    The configuration comes first: an unusable model is refused before its weights are downloaded. Of a download that was ended,
    the files that are complete stay. progress: in place of the hub's own bar.
    """
    folder = on_this_machine(model_id)
    if folder is not None:
        return folder
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise _not_found(
            model_id, "the model is not on this machine, and the hub is switched off (HF_HUB_OFFLINE)", near_misses
        )
    from sordino.models.loading import check_readable, read_config

    notify(f"fetching {model_id} from the Hugging Face Hub")
    folder = _download(model_id, _SETTINGS, near_misses)
    check_readable(read_config(folder), where=model_id)
    wanted = [*_SETTINGS, "*.safetensors"]
    folder = _download(model_id, wanted, near_misses, progress)
    if any(folder.glob("*.safetensors")):
        return folder
    if revision := _converted_revision(model_id):
        return _download(model_id, wanted, near_misses, progress, revision)
    return _download(model_id, [*_SETTINGS, *_PICKLES], near_misses, progress)


def _converted_revision(model_id: str) -> str | None:
    """The open pull request with which the Hub's own converter proposes safetensors weights in place of pickles, or None."""
    from huggingface_hub import get_repo_discussions

    try:
        proposals = get_repo_discussions(
            model_id, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
        )
        # Anybody may open one with this title: only the converter's are taken.
        return next(
            (one.git_reference for one in proposals if one.title == _CONVERSION and one.author == _CONVERTER), None
        )
    except Exception:
        # Many types of network errors. The folder without weights is refused with its reason.
        return None


def repository_folder(repository: str) -> Path:
    """The folder of a repository in the hub's cache on this machine. It may not exist."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def arrived_bytes(model_id: str) -> int:
    """How much of a model the hub's cache on this machine holds, whole or in part."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(repository_folder(model_id) / "blobs"))
    except OSError:
        return 0


def downloaded() -> list[str]:
    """The ids of the models in the hub's own cache, for suggestions."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    if not cache.is_dir():
        return []
    return sorted(path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*"))


def on_this_machine(model_id: str) -> Path | None:
    """The snapshot on this machine, if its configuration and weights are all there; of two, the one with safetensors."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    pickled = None
    for revision in (None, *_proposals_here(model_id)):
        try:
            folder = Path(snapshot_download(model_id, revision=revision, local_files_only=True))
            weights = weight_files(folder)
        except (OSError, HFValidationError, ModelError):
            continue
        if not (folder / "config.json").is_file():
            continue
        if weights[0].suffix == ".safetensors":
            return folder
        pickled = pickled or folder
    return pickled


def _proposals_here(model_id: str) -> list[str]:
    """The pull requests of which the hub's cache on this machine holds a snapshot."""
    refs = repository_folder(model_id) / "refs"
    return [str(path.relative_to(refs).as_posix()) for path in sorted(refs.glob("refs/pr/*"))]


def _download(
    model_id: str,
    patterns: list[str],
    near_misses: str,
    progress: Progress | None = None,
    revision: str | None = None,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cache = Path(HF_HUB_CACHE)
    try:
        with storage_errors(cache, body=cache):
            return Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    allow_patterns=patterns,
                    ignore_patterns=_NOT_WANTED,
                    tqdm_class=reporting(progress) if progress else None,
                )
            )
    except StorageError:
        raise
    except GatedRepoError as error:
        raise ModelError(
            "its licence must be accepted first",
            where=model_id,
            do="accept it on the model's page, then run `hf auth login` and try again",
        ) from error
    except RepositoryNotFoundError as error:
        raise _not_found(model_id, "no such model on the hub", near_misses) from error
    # Its two HTTP clients and its Rust downloader raise many types of network errors.
    except Exception as error:
        if answer := refusal(error):
            raise ModelError(answer.what, where=model_id, got=answer.got, do=answer.do) from error
        raise ModelError(
            "the Hugging Face Hub cannot be reached",
            where=model_id,
            do=f"try again with a network, or {_elsewhere(model_id)}; {near_misses}",
        ) from error


def _not_found(model_id: str, what: str, near_misses: str) -> ModelError:
    return ModelError(what, where=model_id, do=f"{near_misses}; or {_elsewhere(model_id)}")


def _elsewhere(model_id: str) -> str:
    return f"run `hf download {model_id}` on a machine with a network, and give the downloaded folder as the model"
