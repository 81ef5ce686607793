"""The cache of base models on disk: its place, its locks, and folders in it that are built once and checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from typing import Any

import platformdirs

from sordino.errors import OutOfMemory, StorageError
from sordino.storage import atomic_folder, make_folder, write_bytes

# Part of a converted folder's name: incremented when a conversion changes, so that old folders are not used.
CONVERSION = 1
_MANIFEST = "sordino.json"


def cache_folder() -> Path:
    """Where models are cached. It may not exist yet."""
    chosen = os.environ.get("SORDINO_CACHE")
    if chosen:
        return Path(os.path.expanduser(chosen)).resolve()
    return platformdirs.user_cache_path("sordino", appauthor=False)


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


def kept(name: str, state: object, compute: Callable[[], Any]) -> Any:
    """The result of `compute()`, a JSON value, kept in the cache's file `name` until `state` changes.

    A file that cannot be read or written only costs time.
    """
    path = cache_folder() / name
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["state"] == state:
            return known["result"]
    result = compute()
    with suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps({"state": state, "result": result}).encode())
    return result


def converted_folder(fingerprint: str) -> Path:
    return cache_folder() / "converted" / f"{fingerprint[:32]}-v{CONVERSION}"


def described_folder(fingerprint: str) -> Path:
    return cache_folder() / "described" / f"{fingerprint[:32]}-v{CONVERSION}"


def build_once(folder: Path, fingerprint: str, build: Callable[[Path], int]) -> None:
    """Make sure that `folder` is whole: `build` fills it and returns the number of parameters. One process builds, others wait."""
    if is_whole(folder, hash_all=False):
        return
    with locked(f"{folder.parent.name}-{fingerprint[:32]}"):
        if is_whole(folder, hash_all=True):
            return
        make_folder(folder.parent)
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder) as temporary:
            n_parameters = build(temporary)
            _write_manifest(temporary, fingerprint, n_parameters)


def _write_manifest(folder: Path, fingerprint: str, n_parameters: int) -> None:
    """What is in the folder, to notice a damaged one: size and SHA-256 of each file, and the time stamp of hashing."""
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"size": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": sha256_of(path)}
    manifest = {"fingerprint": fingerprint, "n_parameters": n_parameters, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def is_whole(folder: Path, *, hash_all: bool) -> bool:
    """Whether the folder is as it was written. A file of unchanged size and time stamp is hashed only if `hash_all`."""
    try:
        for name, known in read_manifest(folder)["files"].items():
            stat = (folder / name).stat()
            if stat.st_size != known["size"]:
                return False
            if (hash_all or stat.st_mtime_ns != known["mtime_ns"]) and sha256_of(folder / name) != known["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def sha256_of(path: Path) -> str:
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
    """Raises OutOfMemory where the machine has less memory than `needed` bytes. purpose: what they are for."""
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
