"""The names of soft prompts in a library: which are allowed, and which one each file gets. Reads no file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from heapq import nlargest
from itertools import chain, count
from pathlib import Path
from typing import Protocol

from sordino.errors import BadInput
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import SoftPrompt

_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
# Windows has them in no file name.
FORBIDDEN = '/\\:*?"<>|'
_MAX_BYTES = 200
_MOST_COMPARED = 200
# Of the files of each kind of prompt; a name that ends in several is of the first.
ENDINGS: Mapping[str, str] = {Mixture.kind: ".mix.zip", KVPrompt.kind: ".kv.zip", SoftPrompt.kind: ".zip"}
_MARKS = {kind: ending.removesuffix(".zip") for kind, ending in ENDINGS.items() if ending != ".zip"}
# `v.mix (1).zip`, `v.mix - Copy.zip`: what browsers and desktops call a second v.mix.zip.
_COPIED = re.compile(r"\.(mix|kv)(?=(\s+-\s+copy\b|\s*\(\d+\))+$)", re.IGNORECASE)


def without_ending(file_name: str) -> str:
    """A file's name without its ending of ENDINGS; other endings stay."""
    kind = kind_of_name(file_name)
    return file_name[: -len(ENDINGS[kind])] if kind else file_name


def kind_of_name(file_name: str) -> str:
    """The kind of prompt that a file of this name holds, in lower or upper case; "" where the name says none."""
    return next((kind for kind, ending in ENDINGS.items() if file_name.lower().endswith(ending)), "")


def checked_name(name: str) -> str:
    """`name` without its ending of ENDINGS, if Linux, macOS, Windows and URLs allow it. Raises BadInput."""
    for ending in ENDINGS.values():
        name = name.removesuffix(ending)
    name = unicodedata.normalize("NFC", name)
    fault = _fault(name)
    if fault:
        raise BadInput("a soft prompt cannot have this name", where=repr(name), got=fault, do="choose another (--name)")
    return name


def _fault(name: str) -> str:
    if not name.strip():
        return "an empty name"
    bad = sorted({char for char in name if char in FORBIDDEN or not char.isprintable()})
    if bad:
        return f"the characters {' '.join(map(repr, bad))}"
    if _RESERVED.fullmatch(name):
        return "a name that Windows reserves"
    if name[0] in ".- " or name[-1] in ". ":
        return "a dot, a dash or a space at an end"
    if kind := next((kind for kind, ending in _MARKS.items() if name.lower().endswith(ending)), ""):
        # Its file would have the name of another kind.
        return f"the ending {_MARKS[kind]}, which is of {kind}s' files"
    size = len(name.encode())
    return f"{size} bytes, at most {_MAX_BYTES}" if size > _MAX_BYTES else ""


def default_name(source: Path) -> str:
    """The default name of a file or folder in the library."""
    source = source.absolute()
    if source.is_dir():
        return readable_name(source.name)
    stem = without_ending(source.name)
    return readable_name(stem if stem != source.name else source.stem)


def readable_name(label: str) -> str:
    """`v (1)` and `v.mix (1)` become `v-1`, `v - Copy (2)` becomes `v-copy-2`, and `_` stands for what cannot be printed."""
    name = unicodedata.normalize("NFC", label)
    name = "".join(char if char.isprintable() else "_" for char in name)
    name = _COPIED.sub("", name)
    name = re.sub(r"\s+-\s+copy\b", "-copy", name, flags=re.IGNORECASE)
    return re.sub(r"\s*\((\d+)\)", r"-\1", name).strip() or "_"


def safe_name(label: str) -> str:
    """An allowed name for any label: characters that no file name may have become "-"."""
    name = re.sub(f"[{re.escape(FORBIDDEN)}]+", "-", readable_name(label))
    name = re.sub(r"-{2,}", "-", name)
    for mark in _MARKS.values():
        name = name.removesuffix(mark)
    name = name.strip(" .-")
    return "voice" if _fault(name) else name


def free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """`name`, or the first of `v-2`, `v-3`, ... that is not taken."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if not is_taken(one))


class Place(Protocol):
    """A folder, or another source of files."""

    @property
    def name(self) -> str: ...


def unique_names(files: Sequence[tuple[Place, str]]) -> list[str]:
    """A name for each (place, file name without ending).

    A file keeps its own name whatever else arrives. Where two would share one, the later (by place, then in the order given) is
    `v@place` in another place than the first, and then, or in the same place, `v-2`, `v-3`.
    """
    readable = [readable_name(label) for _, label in files]
    names: dict[int, str] = {}
    taken: dict[str, Place] = {}
    # First those whose file name is a name: a copy `v (1).zip` must not take `v-1` from `v-1.zip`.
    for i in sorted(range(len(files)), key=lambda i: (readable[i] != files[i][1], i)):
        place, name = files[i][0], readable[i]
        if name in taken and taken[name] != place:
            name = f"{name}@{place.name}"
        name = free_name(name, taken.__contains__)
        taken[name], names[i] = place, name
    return [names[i] for i in range(len(files))]


def near_misses(name: str, names: Sequence[str]) -> list[str]:
    """Up to three of `names` that are closest to `name`, the best first."""
    by_folded, wanted = {known.casefold(): known for known in names}, name.casefold()
    likely: Collection[str] = by_folded
    if len(by_folded) > _MOST_COMPARED:
        # Comparing thousands takes a second.
        pairs = _pairs(wanted)
        likely = nlargest(_MOST_COMPARED, by_folded, key=lambda known: len(pairs & _pairs(known)))
    return [by_folded[near] for near in get_close_matches(wanted, likely, n=3, cutoff=0.5)]


def did_you_mean(name: str, names: Sequence[str], otherwise: str) -> str:
    """The advice where `name` is none of `names`: the closest ones, or `otherwise`."""
    close = near_misses(name, names)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def _pairs(text: str) -> set[str]:
    return {text[at : at + 2] for at in range(len(text) - 1)}
