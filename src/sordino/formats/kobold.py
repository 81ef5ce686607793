"""KoboldAI's zip, which is Sordino's own format too: tensor.npy and meta.json."""

from __future__ import annotations

from collections.abc import Sequence

from sordino.errors import SoftPromptFileError
from sordino.formats import folders, meta, npy
from sordino.formats.folders import META, TENSOR, Members
from sordino.formats.json_text import read_object
from sordino.formats.meta_keys import SOFT_PROMPT
from sordino.formats.tensors import Opened, load
from sordino.formats.zips import Archive
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

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


def read_component(archive: Archive) -> Opened:
    """The soft prompt in a native zip of a mixture, which has two members, stored. Raises SoftPromptFileError."""
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
    return read(folders.members_of(archive, [(member.filename, member) for member in archive.members]))


def prompt_of(opened: Opened, metadata: Metadata, where: object) -> SoftPrompt:
    """The soft prompt whose headers were read, of any format. Raises SoftPromptFileError."""
    prompt = SoftPrompt(load(opened.tensor), metadata)
    meta.check_hash(where, "the matrix", SOFT_PROMPT.hash_key, opened.content_hash, prompt.content_hash)
    return prompt


def members_of(prompt: SoftPrompt) -> list[tuple[str, Sequence[bytes]]]:
    """The members of the native file, in order: the same bytes for the same soft prompt, everywhere. Raises BadInput."""
    return [(TENSOR, npy.pieces(prompt.matrix)), (META, [meta.to_bytes(prompt)])]
