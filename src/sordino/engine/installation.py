"""Is everything there that the commands need? Models, folders, extras and hardware."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from sordino import __version__
from sordino.errors import SordinoError
from sordino.library.library import Library

_GIB = 2**30
# Training with the bundled model takes about this much; its download, conversion and a few runs take this much disk.
_MEMORY_WANTED = 2 * _GIB
_DISK_WANTED = 2 * _GIB


@dataclass(frozen=True)
class Finding:
    """One line of the report. "note" is worth knowing, "bad" keeps commands from working."""

    what: str
    state: Literal["ok", "note", "bad"]
    found: str
    do: str = ""


def examine(library: Library) -> Iterable[Finding]:
    """All findings, in the order they are shown."""
    yield python_version()
    yield from torch_and_gpu()
    yield memory()
    yield from cache()
    yield from library_folders(library)
    yield from extras(metadata.requires("sordino") or [] if _installed("sordino") else [])
    yield llama()


def python_version() -> Finding:
    where = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    return Finding("sordino", "ok", f"{__version__}, {where}")


def torch_and_gpu() -> Iterable[Finding]:
    """Whether torch can be loaded, and the device that commands use when none is named."""
    try:
        import torch
        import transformers
    # A torch built for another system fails in its own ways: OSError from a missing DLL, RuntimeError from a bad CUDA.
    except (ImportError, OSError, RuntimeError) as error:
        yield Finding("torch", "bad", f"cannot be loaded: {error}", "pip install --force-reinstall torch transformers")
        return
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    yield Finding("torch", "ok", f"{torch.__version__}, {threads}; transformers {transformers.__version__}")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding("GPU", "ok", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free (--device cuda)")
    elif torch.backends.mps.is_available():
        yield Finding("GPU", "ok", "Apple GPU (--device mps)")
    else:
        yield Finding("GPU", "ok", "none that torch can use; the CPU is enough for small models")


def memory() -> Finding:
    import psutil

    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < _MEMORY_WANTED:
        return Finding("memory", "note", found, "close other programs before training; the bundled model wants 2 GiB")
    return Finding("memory", "ok", found)


def cache() -> Iterable[Finding]:
    """Where base models are stored, and which of the bundled ones are there."""
    from sordino.models import files

    folder = files.cache_folder()
    free = shutil.disk_usage(_nearest_existing(folder)).free
    yield folder_finding("cache", folder, note=f"{free / _GIB:.1f} GiB free")
    if free < _DISK_WANTED:
        yield Finding(
            "disk", "note", f"{free / _GIB:.1f} GiB free", f"make room, or set SORDINO_CACHE; {folder} holds models"
        )
    for name in files.BUNDLED:
        ready = files.is_ready(name)
        found = "ready" if ready else "not here yet: the first use downloads it"
        yield Finding(f"model {name}", "ok" if ready else "note", found)


def library_folders(library: Library) -> Iterable[Finding]:
    """Whether the folders can be read (and the first one written), and the files in them that cannot be read."""
    for index, folder in enumerate(library.folders):
        if index == 0:
            yield folder_finding("library", folder)
        else:
            there = folder.is_dir()
            yield Finding("library", "ok" if there else "note", str(folder) if there else f"{folder} does not exist")
    try:
        entries = library.scan()
    except SordinoError as error:
        yield Finding("soft prompts", "bad", error.message)
        return
    broken = [f"{entry.path.name} ({entry.error})" for entry in entries if entry.error]
    yield Finding("soft prompts", "ok", f"{len(entries) - len(broken)} in the library")
    for line in broken:
        yield Finding("soft prompts", "note", line, "remove the file, or get it again")


def folder_finding(what: str, folder: Path, *, note: str = "") -> Finding:
    """Whether files can be written to `folder`; for one that does not exist yet, to its nearest parent."""
    there = _nearest_existing(folder)
    found = str(folder) + (f", {note}" if note else "")
    if not there.is_dir():
        return Finding(what, "bad", f"{there} is a file, not a folder", f"move the file, or {_CHOOSE[what]}")
    try:
        # os.access is no help: it knows nothing of Windows' permissions.
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(
            what,
            "bad",
            f"{there} cannot be written to: {error.strerror}",
            f"change its permissions, or {_CHOOSE[what]}",
        )
    return Finding(what, "ok", found if folder == there else f"{found} (made at the first use)")


_CHOOSE = {
    "library": "choose another folder with --library or SORDINO_LIBRARY",
    "cache": "choose another folder with SORDINO_CACHE",
}


def extras(requirements: Iterable[str]) -> Iterable[Finding]:
    """For each optional extra, whether all its packages are there. `requirements` as in a package's metadata."""
    wanted: dict[str, list[str]] = {}
    for requirement in requirements:
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", requirement)
        if package and extra:
            wanted.setdefault(extra[1], []).append(package[0])
    for name, packages in sorted(wanted.items()):
        missing = [package for package in packages if not _installed(package)]
        if missing:
            yield Finding(f"extra {name}", "ok", f"not installed: {', '.join(missing)} (pip install 'sordino[{name}]')")
        else:
            yield Finding(f"extra {name}", "ok", "installed")


def llama() -> Finding:
    """Whether llama.cpp can be used."""
    try:
        from sordino.engine.runners.llama_library import VERSION, library_file, why_not

        why = why_not()
    # PyTorch, see above.
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("llama.cpp", "note", f"cannot be used: {error}")
    if why:
        return Finding("llama.cpp", "note", why, "until then PyTorch runs .gguf files, slower")
    return Finding("llama.cpp", "ok", f"{VERSION[0]}, {library_file()}")


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
