"""A packaged text in another voice, to measure what a soft prompt costs elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from sordino.prompts.mixture import StoredPrompt, components_of
from sordino.prompts.prompt import Prompt
from sordino.texts.pieces import Piece, data_hash, digest
from sordino.texts.reading import read_pieces

# (folder, description) in order of preference.
CORPORA = (
    ("gazette", "the packaged village gazette (held-out issues)"),
    ("keeper", "the packaged lighthouse keeper's book (held-out entries)"),
    ("noir", "the packaged Port Dolor detective stories (held-out ones)"),
)
# What is in the name of a soft prompt that was trained on the corpus.
_NAMED = {"gazette": "gazette", "keeper": "keeper", "noir": "port dolor"}


def packaged_text(prompts: Iterable[StoredPrompt], heldout: Sequence[Piece]) -> tuple[str, tuple[Piece, ...]] | None:
    """A description and the pieces of the first packaged corpus that no soft prompt was trained on and that is not `heldout`.

    None if there is no such corpus.
    """
    parts = [part for prompt in prompts for part in components_of(prompt)]
    for name, description in CORPORA:
        if not _is_corpus(name, parts, heldout):
            return description, read_pieces([_folder(name) / "heldout"]).pieces
    return None


def own_text(prompt: Prompt) -> tuple[str, tuple[Piece, ...]]:
    """A description and the pieces of the packaged corpus that a soft prompt was trained on, else of the first one."""
    name, description = next((one for one in CORPORA if _is_corpus(one[0], [prompt], ())), CORPORA[0])
    return description, read_pieces([_folder(name) / "heldout"]).pieces


def _is_corpus(name: str, prompts: Sequence[Prompt], heldout: Sequence[Piece]) -> bool:
    pieces = read_pieces([_folder(name)]).pieces
    known = {digest(piece) for piece in pieces}
    # Trained with --heldout, the data hash covers the whole folder; without, only a part, and only the name can tell.
    trained = data_hash(read_pieces([_folder(name) / "train"]).pieces)
    return any(digest(piece) in known for piece in heldout) or any(
        prompt.metadata.training.get("data_hash") == trained or _NAMED[name] in prompt.metadata.name.lower()
        for prompt in prompts
    )


def _folder(name: str) -> Path:
    # The package is always installed as a folder.
    return Path(str(resources.files("sordino"))) / "data" / name
