"""Models of the Hugging Face Hub: from the hub's cache on this machine if complete, else downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sordino.errors import ModelError, StorageError
from sordino.models.fingerprint import weight_files
from sordino.storage import storage_errors

_SETTINGS = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
# Folders of a repository hold other formats; `consolidated` is Mistral's second copy of the weights.
_NOT_WANTED = ["*/*", "consolidated*"]


def snapshot(model_id: str, *, notify: Callable[[str], None], near_misses: str) -> Path:
    """The folder of a hub model, downloaded if necessary and HF_HUB_OFFLINE permits. Raises ModelError.

    The configuration comes first: an unusable model is refused before its weights are downloaded.
    """
    folder = on_this_machine(model_id)
    if folder is not None:
        return folder
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise _not_found(
            model_id, "the hub is switched off (HF_HUB_OFFLINE) and the model is not on this machine", near_misses
        )
    from sordino.models.loading import check_readable, read_config

    notify(f"fetching {model_id} from the Hugging Face Hub")
    folder = _download(model_id, _SETTINGS, near_misses)
    check_readable(read_config(folder), where=model_id)
    return _download(model_id, [*_SETTINGS, "*.safetensors"], near_misses)


def downloaded() -> list[str]:
    """The ids of the models in the hub's own cache, for suggestions."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    if not cache.is_dir():
        return []
    return sorted(path.name.removeprefix("models--").replace("--", "/", 1) for path in cache.glob("models--*"))


def on_this_machine(model_id: str) -> Path | None:
    """The snapshot on this machine, if its configuration and weights are all there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(model_id, local_files_only=True))
        weight_files(folder)
    except (OSError, HFValidationError, ModelError):
        return None
    return folder if (folder / "config.json").is_file() else None


def _download(model_id: str, patterns: list[str], near_misses: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    cache = Path(HF_HUB_CACHE)
    try:
        with storage_errors(cache, body=cache):
            return Path(snapshot_download(model_id, allow_patterns=patterns, ignore_patterns=_NOT_WANTED))
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
        raise _not_found(model_id, f"the hub cannot be reached ({type(error).__name__})", near_misses) from error


def _not_found(model_id: str, why: str, near_misses: str) -> ModelError:
    return ModelError(
        "base model not found",
        where=model_id,
        got=why,
        do=f"{near_misses}; or, where there is a network, run `hf download {model_id}` and give --model the folder",
    )
