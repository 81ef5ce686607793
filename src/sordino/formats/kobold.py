"""KoboldAI's zip, which is Sordino's own format too: tensor.npy and meta.json."""

from __future__ import annotations

from typing import BinaryIO

from sordino.errors import SoftPromptFileError
from sordino.formats import meta, npy
from sordino.formats.folders import META, TENSOR, Members, members_of
from sordino.formats.json_text import read_object
from sordino.formats.sources import Files, Readable
from sordino.formats.tensors import Opened
from sordino.formats.zips import Archive, write_zip
from sordino.prompts.soft_prompt import SoftPrompt

# The member that makes a zip a mixture: see `mixtures`.
MIXTURE = "mixture.json"


def read(members: Members) -> Opened:
    """The soft prompt in two members. Raises SoftPromptFileError."""
    tensor = npy.stored(members[TENSOR]())
    if META not in members:
        # KoboldAI lists such a file and cannot load it, but its matrix is good.
        return Opened(tensor)
    source = members[META]()
    described = meta.from_json(read_object(source), source.where)
    return Opened(tensor, described.metadata, described.content_hash)


def read_component(source: Readable, files: Files) -> Opened:
    """The soft prompt in a native zip of a mixture, which has two members, stored. Raises SoftPromptFileError."""
    archive = Archive(source, files)
    found = sorted(member.filename for member in archive.members)
    if found != [META, TENSOR] or any(member.compress_type for member in archive.members):
        # Sixteen compressed components could each unpack to sixteen times their size.
        raise SoftPromptFileError(
            "a component of a mixture is not a native soft prompt",
            where=archive.where,
            expected=f"{TENSOR} and {META}, stored",
            got=", ".join(f"{name[:40]}" for name in found[:5]) or "nothing",
            do="a mixture in a mixture is not possible" if MIXTURE in found else "",
        )
    archive.check_apart()
    return read(members_of(archive, [(member.filename, member) for member in archive.members]))


def write(prompt: SoftPrompt, file: BinaryIO) -> None:
    """The native file: the same bytes for the same soft prompt, everywhere. Raises BadInput."""
    write_zip(file, [(TENSOR, npy.pieces(prompt)), (META, [meta.to_bytes(prompt)])])
