"""Soft prompts of several files: KoboldAI's two and PEFT's, in a folder or in a zip.

People unpack zips and pack them again, so a folder in a folder, a zip of a folder, and a zip of a zip are read as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from zipfile import ZipInfo

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Files, Readable
from sordino.formats.torch_files import is_pickle_member
from sordino.formats.zips import Archive

TENSOR, META = "tensor.npy", "meta.json"
CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# The rest of the metadata, and of a KV prompt; PEFT ignores them.
OURS, OUR_TENSORS = "sordino.json", "sordino.safetensors"
_NAMES = (TENSOR, META, CONFIG, WEIGHTS, OLD_WEIGHTS, OURS, OUR_TENSORS)
# A folder with one of these is a soft prompt.
_MARKS = (CONFIG, TENSOR)
# Packing by hand makes at most a zip in a folder in a zip.
_MAX_WRAPPERS = 3

Members = Mapping[str, Callable[[], Readable]]


def unwrap(archive: Archive) -> Archive | Members:
    """The files, unwrapped from a folder or zip around them; an Archive if it is torch's.

    Raises SoftPromptFileError where there is no soft prompt, or two files of one name.
    """
    found = [(member.filename, member) for member in archive.members]
    for _ in range(_MAX_WRAPPERS + 1):
        if any(name in _MARKS for name, _ in found):
            return members_of(archive, found)
        if any(is_pickle_member(member.filename) for member in archive.members):
            return archive
        if len(found) == 1 and found[0][0].lower().endswith(".zip"):
            content = archive.open(found[0][1])
            content.verify()
            archive = Archive(content, archive.files)
            found = [(member.filename, member) for member in archive.members]
        elif len({name.partition("/")[0] for name, _ in found}) == 1 and "/" in found[0][0]:
            found = [(name.partition("/")[2], member) for name, member in found]
        else:
            break
    raise _refusal("zip", archive.where, (member.filename for member in archive.members))


def in_folder(path: Path, files: Files) -> Members:
    """The files in a folder, or in the only folder in it. Raises SoftPromptFileError."""
    folder = path
    if not _is_marked(path):
        inner = [item for item in path.iterdir() if not item.name.startswith((".", "__MACOSX"))]
        if len(inner) != 1 or not _is_marked(inner[0]):
            raise _refusal("folder", path, sorted(item.name for item in inner))
        folder = inner[0]
    return {name: partial(files.open, folder / name) for name in _NAMES if os.path.isfile(folder / name)}


def members_of(archive: Archive, found: Iterable[tuple[str, ZipInfo]]) -> Members:
    """The members of an archive that belong to a soft prompt, by name."""
    members: dict[str, Callable[[], Readable]] = {}
    for name, member in found:
        if name in _NAMES:
            if name in members:
                raise SoftPromptFileError(f"the zip has two members called {name}", where=archive.where)
            members[name] = partial(archive.open, member)
    return members


def _is_marked(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in _MARKS)


def _refusal(holder: str, where: object, names: Iterable[str]) -> SoftPromptFileError:
    names = list(names)
    several = sum(name.rpartition("/")[2] in _MARKS for name in names) > 1
    arrays = names and all(name.endswith(".npy") for name in names)
    return SoftPromptFileError(
        f"not a soft prompt: the {holder} has no {TENSOR} and no {CONFIG}",
        where=where,
        got=", ".join([name[:40] for name in names][:5]) or "nothing",
        do="it holds several: unpack it and read one of its folders"
        if several
        else "save the matrix alone: numpy.save('prompt.npy', matrix)"
        if arrays
        else "",
    )
