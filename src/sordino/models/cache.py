"""The cache of base models on disk: where it is, who may write to it, and whether a converted model in it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from typing import Any

import platformdirs

from sordino.errors import OutOfMemory, StorageError
from sordino.storage import make_folder

# Part of a converted folder's name: raised when a conversion comes out differently, so that old ones are not used.
CONVERSION = 1
_MANIFEST = "sordino.json"


def cache_folder() -> Path:
    """Where models are kept. It need not exist yet."""
    said = os.environ.get("SORDINO_CACHE", "")
    return (
        Path(os.path.expanduser(said)).resolve() if said else platformdirs.user_cache_path("sordino", appauthor=False)
    )


@contextmanager
def locked(key: str) -> Iterator[None]:
    """One process at a time for `key`; the others wait. Raises StorageError where the cache cannot be written."""
    from filelock import FileLock

    folder = cache_folder() / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"the cache cannot be written ({error.strerror or error})",
            where=cache_folder(),
            do="make it writable, or set SORDINO_CACHE",
        ) from error
    try:
        yield
    finally:
        lock.release()


def converted_folder(print_: str) -> Path:
    return cache_folder() / "converted" / f"{print_[:32]}-v{CONVERSION}"


def described_folder(print_: str) -> Path:
    return cache_folder() / "described" / f"{print_[:32]}-v{CONVERSION}"


def write_manifest(folder: Path, print_: str, n_parameters: int) -> None:
    """What the folder is and holds, to notice a damaged one: bytes and SHA-256 a file, and the time stamp they were hashed at."""
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": _sha256(path)}
    manifest = {"fingerprint": print_, "n_parameters": n_parameters, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def is_whole(folder: Path, *, hash_all: bool) -> bool:
    """Whether the folder is as it was written. A file with its old size and time stamp is hashed only if `hash_all`."""
    try:
        files = read_manifest(folder)["files"].items()
        for name, said in files:
            stat = (folder / name).stat()
            if stat.st_size != said["size"]:
                return False
            if (hash_all or stat.st_mtime_ns != said["mtime_ns"]) and _sha256(folder / name) != said["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def check_disk(needed: int) -> None:
    folder = cache_folder()
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            "the disk of the cache is too full for this model",
            where=folder,
            expected=f"{needed / 1e9:.1f} GB free",
            got=f"{free / 1e9:.1f} GB",
            do="make room, or set SORDINO_CACHE to a folder on another disk",
        )


def check_memory(needed: int, name: str, *, purpose: str) -> None:
    """Raises OutOfMemory where the machine cannot have `needed` bytes. purpose: what they are for."""
    import psutil

    total = psutil.virtual_memory().total
    if needed > total:
        raise OutOfMemory(
            f"{purpose}, and this one is too large for the machine's memory",
            where=name,
            expected=f"at most {total / 1e9:.1f} GB",
            got=f"{needed / 1e9:.1f} GB",
            do="try --dtype bfloat16 or a smaller model",
        )
