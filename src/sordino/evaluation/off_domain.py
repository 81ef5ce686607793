"""A text in another voice, to see what a soft prompt costs where it is not wanted: one of the packaged corpora."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.pieces import Piece, data_hash, digest
from sordino.texts.reading import read_pieces

# In the order of preference, and what the user is told.
CORPORA = (
    ("gazette", "the packaged village gazette (held-out issues)"),
    ("keeper", "the packaged lighthouse keeper's book (held-out entries)"),
    ("noir", "the packaged Port Dolor detective stories (held-out ones)"),
)
# What a soft prompt in a corpus's voice has in its name.
_NAMED = {"gazette": "gazette", "keeper": "keeper", "noir": "port dolor"}


def packaged_text(prompts: Iterable[Prompt], heldout: Sequence[Piece]) -> tuple[str, tuple[Piece, ...]] | None:
    """A description and the pieces: the first packaged corpus that no soft prompt was made of and that is not `heldout`.

    None where every one of them is in some prompt's voice.
    """
    prompts = list(prompts)
    for name, told in CORPORA:
        if not _is_corpus(name, prompts, heldout):
            return told, read_pieces([_folder(name) / "heldout"]).pieces
    return None


def own_text(prompt: SoftPrompt) -> tuple[str, tuple[Piece, ...]]:
    """A description and the pieces to look at a soft prompt with: the packaged corpus in its voice, else the first one."""
    name, told = next((one for one in CORPORA if _is_corpus(one[0], [prompt], ())), CORPORA[0])
    return told, read_pieces([_folder(name) / "heldout"]).pieces


def _is_corpus(name: str, prompts: Sequence[Prompt], heldout: Sequence[Piece]) -> bool:
    pieces = read_pieces([_folder(name)]).pieces
    known = {digest(piece) for piece in pieces}
    # With --heldout the data hash covers the whole training folder; where the split was made by us it covers a part of it.
    trained = data_hash(read_pieces([_folder(name) / "train"]).pieces)
    return any(digest(piece) in known for piece in heldout) or any(
        prompt.metadata.training.get("data_hash") == trained or _NAMED[name] in prompt.metadata.name.lower()
        for prompt in prompts
    )


def _folder(name: str) -> Path:
    # The package is always a folder: its tests, models and libraries are files too.
    return Path(str(resources.files("sordino"))) / "data" / name
