"""KoboldAI's zip, which is Sordino's own format too: tensor.npy and meta.json.

People unpack zips, and pack again what they unpacked: a folder with the two files, a zip with one such folder, and a zip
with one such zip are read as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sordino.errors import SoftPromptFileError
from sordino.formats import meta, npy
from sordino.formats.json_text import read_object
from sordino.formats.opened import Opened
from sordino.formats.sources import Source
from sordino.formats.torch_files import is_pickle_member
from sordino.formats.zips import Archive, Member, write_zip
from sordino.prompts.soft_prompt import SoftPrompt

TENSOR, META = "tensor.npy", "meta.json"
# The member that makes a zip a mixture: see `mixtures`.
MIXTURE = "mixture.json"
# A zip in a folder in a zip is as far as honest packing goes.
_MAX_WRAPPERS = 3

Members = Mapping[str, Callable[[], Source]]


def unwrap(archive: Archive, *, disk_size: int) -> Archive | Members:
    """The two members, out of the folder or zip that they may be wrapped in; an Archive if it is torch's.

    Raises SoftPromptFileError where there is no tensor.npy, or two of one name.
    """
    found = [(member.name, member) for member in archive.members]
    for _ in range(_MAX_WRAPPERS + 1):
        if any(name == TENSOR for name, _ in found):
            return _members(archive, found)
        if any(is_pickle_member(member.name) for member in archive.members):
            return archive
        if len(found) == 1 and found[0][0].lower().endswith(".zip"):
            content = archive.open(found[0][1])
            content.verify()
            archive = Archive(content, disk_size=disk_size)
            found = [(member.name, member) for member in archive.members]
        elif len({name.partition("/")[0] for name, _ in found}) == 1 and "/" in found[0][0]:
            found = [(name.partition("/")[2], member) for name, member in found]
        else:
            break
    names = ", ".join(member.name[:40] for member in archive.members[:5]) or "nothing"
    raise SoftPromptFileError("not a soft prompt: the zip has no tensor.npy", where=archive.where, got=names)


def folder_members(path: Path, open_file: Callable[[Path], Source]) -> Members:
    """The two files in a folder, or in the only folder in it. Raises SoftPromptFileError."""
    folder = path
    if not os.path.isfile(path / TENSOR):
        inner = [item for item in path.iterdir() if not item.name.startswith((".", "__MACOSX"))]
        if len(inner) == 1 and os.path.isfile(inner[0] / TENSOR):
            folder = inner[0]
        else:
            raise SoftPromptFileError(
                "not a soft prompt: the folder has no tensor.npy and no adapter_config.json",
                where=path,
                got=", ".join(sorted(item.name[:40] for item in inner)[:5]) or "nothing",
            )
    return {name: partial(open_file, folder / name) for name in (TENSOR, META) if os.path.isfile(folder / name)}


def read(members: Members) -> Opened:
    """The soft prompt in two members. Raises SoftPromptFileError."""
    tensor = npy.stored(members[TENSOR]())
    if META not in members:
        # KoboldAI lists such a file and cannot load it; nothing is wrong with its matrix.
        return Opened(tensor)
    source = members[META]()
    described = meta.from_json(read_object(source), source.where)
    return Opened(tensor, described.metadata, described.content_hash)


def read_component(source: Source) -> Opened:
    """The soft prompt in a mixture's native zip: its two members, stored and nothing beside them. Raises SoftPromptFileError."""
    archive = Archive(source, disk_size=source.size)
    found = sorted(member.name for member in archive.members)
    if found != [META, TENSOR] or any(member.method for member in archive.members):
        # Compressed, sixteen of them could each unpack to sixteen times their size.
        raise SoftPromptFileError(
            "a component of a mixture is not a native soft prompt",
            where=archive.where,
            expected=f"{TENSOR} and {META}, stored",
            got=", ".join(f"{name[:40]}" for name in found[:5]) or "nothing",
            do="a mixture in a mixture is not possible" if MIXTURE in found else "",
        )
    archive.check_apart()
    return read(_members(archive, [(member.name, member) for member in archive.members]))


def write(prompt: SoftPrompt, file: BinaryIO) -> None:
    """The native file: the same bytes for the same soft prompt, everywhere. Raises BadInput."""
    write_zip(file, [(TENSOR, npy.pieces(prompt)), (META, [meta.to_bytes(prompt)])])


def _members(archive: Archive, found: list[tuple[str, Member]]) -> Members:
    members: dict[str, Callable[[], Source]] = {}
    for name, member in found:
        if name in (TENSOR, META):
            if name in members:
                raise SoftPromptFileError(f"the zip has two members called {name}", where=archive.where)
            members[name] = partial(archive.open, member)
    return members
