"""Which files of a repository on the Hugging Face Hub are downloaded, how large they may be, and whether they arrived whole.

A file lies where the Hub's client keeps it. What has arrived of one is NAME.part there, and the next download goes on from it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sordino.errors import HubError
from sordino.formats.folders import CONFIG, OUR_TENSORS, OURS, WEIGHTS
from sordino.formats.json_text import MAX_JSON
from sordino.formats.torch_files import PICKLE_ENDINGS
from sordino.library.hub_names import HubReference, hub_errors
from sordino.library.names import FORBIDDEN
from sordino.models.cache import locked, sha256_of
from sordino.models.hub import repository_folder
from sordino.models.hub_answers import Progress, reporting
from sordino.storage import storage_errors

_ENDINGS = (".zip", ".safetensors", ".npy")
_ADAPTER = (CONFIG, WEIGHTS, OURS, OUR_TENSORS)
# The largest matrix, 2,047 vectors of 65,536 numbers, is half of it.
_MOST_BYTES = 1 << 30
_CHUNK = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """size: bytes, as the Hub says. sha256: "" for a small file that git holds, whose hash is git's, `git_hash`."""

    name: str
    size: int
    sha256: str = ""
    git_hash: str = ""

    def sha256_of(self, path: Path) -> str:
        return self.sha256 or sha256_of(path)

    def is_whole(self, path: Path) -> bool:
        """Whether the file has the size and the hash that the Hub states."""
        if path.stat().st_size != self.size:
            return False
        return sha256_of(path) == self.sha256 if self.sha256 else _git_hash(path) == self.git_hash


def chosen(reference: HubReference, siblings: Iterable[Any]) -> tuple[HubFile, ...]:
    """The files of the soft prompt: the one that is named, else the only zip, an adapter's files, the only other file.

    siblings: of a ModelInfo with the files' metadata. Files in folders of the repository are left out, and so are names that are
    paths. Raises HubError.
    """
    files = {one.rfilename: one for one in siblings if _is_plain(one.rfilename)}
    if reference.file:
        names = [reference.file]
        if reference.file not in files:
            raise HubError("the repository has no such file", where=reference, got=_some(files))
    else:
        names = _unnamed(reference, list(files))
    for name in names:
        if not name.lower().endswith(_ENDINGS) and name not in _ADAPTER:
            raise _refused_pickle(reference, name) if _is_pickle(name) else _nothing(reference, files)
    return tuple(_checked(reference, files[name]) for name in names)


def looks_like_a_prompt(name: str) -> bool:
    """Whether a file at the root of a repository may be a soft prompt, or part of one."""
    return _is_plain(name) and (name.lower().endswith((*_ENDINGS, *PICKLE_ENDINGS)) or name in _ADAPTER)


def total_size(files: Iterable[HubFile]) -> int:
    return sum(file.size for file in files)


def local_path(reference: HubReference, file: str = "") -> Path:
    """Where the Hub's client keeps a file of this commit, or the folder of all of them."""
    return repository_folder(reference.repository) / "snapshots" / reference.revision / file


def downloaded(reference: HubReference, files: Sequence[HubFile], progress: Progress | None = None) -> Path:
    """Download the files into the Hub client's cache, one by one. Returns the file, or the folder of several. Raises HubError,
    StorageError."""
    total, before = total_size(files), 0
    cache, report = local_path(reference), progress or (lambda arrived, total: None)
    for file in files:
        path = local_path(reference, file.name)
        with locked(f"hub-{reference.repository.replace('/', '--')}"):
            if not path.is_file():
                with hub_errors(reference), storage_errors(cache, body=cache.parents[2]):
                    _download(reference, file, path, partial(_with_earlier, report, before, total))
            if not file.is_whole(path):
                _forget(path)
                raise HubError(
                    f"{file.name} is not what the Hub says it is",
                    where=reference,
                    expected=f"{file.size} bytes of hash {(file.sha256 or file.git_hash)[:16]}",
                    do="nothing was installed; try again, and do not trust it if this happens again",
                )
        before += file.size
        report(before, total)
    return local_path(reference, files[0].name) if len(files) == 1 else cache


def _with_earlier(report: Progress, before: int, total: int, arrived: int, _: int) -> None:
    """What arrived of this file, added to the files before it."""
    report(before + arrived, total)


def _download(reference: HubReference, file: HubFile, target: Path, progress: Progress) -> None:
    """The Hub's client names its temporary files anew in each process, so it cannot resume one. Only its requests are used."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(reference.repository, file.name, revision=reference.revision)
    bar = reporting(progress, most=file.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("ab") as stream:
            if (begun := stream.tell()) < file.size:
                http_get(url, stream, resume_size=begun, headers=build_hf_headers(), tqdm_class=bar)
    except HubError:
        # Of another size than was stated.
        part.unlink()
        raise
    os.replace(part, target)


def _unnamed(reference: HubReference, names: Sequence[str]) -> list[str]:
    """The files of the one soft prompt of a repository. Raises HubError where it is not clear which."""
    zips, others = ([name for name in names if name.lower().endswith(ending)] for ending in (".zip", _ENDINGS[1:]))
    if len(zips) > 1:
        raise HubError(
            "the repository holds several soft prompts",
            where=reference,
            got=_some(zips),
            do=f"name one: hf:{reference.repository}/FILE",
        )
    if zips:
        return zips
    if CONFIG in names and WEIGHTS in names:
        return [name for name in _ADAPTER if name in names]
    if len(others) == 1 and CONFIG not in names:
        return others
    pickles = [name for name in names if _is_pickle(name)]
    raise _refused_pickle(reference, pickles[0]) if pickles and not others else _nothing(reference, names)


def _checked(reference: HubReference, sibling: Any) -> HubFile:
    """Raises HubError for a file that is too large, or whose size or hash the Hub does not give."""
    lfs, size = sibling.lfs, sibling.size
    file = HubFile(sibling.rfilename, size or 0, lfs.sha256 if lfs else "", sibling.blob_id or "")
    most = MAX_JSON if file.name.endswith(".json") else _MOST_BYTES
    if not isinstance(size, int) or not (file.sha256 or file.git_hash):
        raise HubError(f"the Hub does not say what {file.name} is", where=reference, expected="its size and its hash")
    if not 0 < size <= most:
        raise HubError(
            f"{file.name} is too large for a soft prompt" if size else f"{file.name} is empty",
            where=reference,
            expected=f"at most {most / 1e6:,.1f} MB",
            got=f"{size / 1e6:,.1f} MB",
        )
    return file


def _is_plain(name: str) -> bool:
    return name.isprintable() and not name.startswith(".") and not set(name) & set(FORBIDDEN)


def _is_pickle(name: str) -> bool:
    return name.lower().endswith(PICKLE_ENDINGS)


def _refused_pickle(reference: HubReference, name: str) -> HubError:
    return HubError(
        f"{name} is a pickle, a kind of file that can run programs: it is not downloaded",
        where=reference,
        do=f"ask its author for .safetensors, or `hf download {reference.repository} {name}`, then `sordino convert` on that "
        "file, which reads it without running anything",
    )


def _nothing(reference: HubReference, names: Iterable[str]) -> HubError:
    return HubError(
        "the repository holds no soft prompt",
        where=reference,
        expected=f"one .zip, {CONFIG} with {WEIGHTS}, or one .safetensors or .npy file",
        got=_some(names),
    )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "") or "nothing"


def _git_hash(path: Path) -> str:
    found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _forget(path: Path) -> None:
    """Take a file out of the client's cache, with the content that its name points to."""
    with suppress(OSError):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
