"""Pieces into three disjoint sets: train, validation, held-out.

Validation steers the run (learning rate, early stopping, choice of initialisation), so it cannot also judge it; held-out texts are
used once, for the report. The split depends on the seed and the pieces' content, not on the names or order of files, and one more
file moves few others.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from sordino.errors import DataError
from sordino.texts.blocks import PAGE, joined, pages
from sordino.texts.overlap import overlap_lines, repeated
from sordino.texts.pieces import Piece, digest

HELDOUT = 0.12
VALIDATION = 0.10
LARGEST = 0.25  # of all characters: the most that one group of pieces may add to a small set
DOMINANT = 0.6  # of all characters: a work this large is cut, since the others are too small to judge by
MIN_GROUPS = 5
MIN_PAGES = 3
MIN_CHARACTERS = 1000


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets. how: a sentence for the user. duplicates: lines on texts that are in two sets or repeated."""

    train: tuple[Piece, ...]
    validation: tuple[Piece, ...]
    heldout: tuple[Piece, ...]
    how: str
    duplicates: tuple[str, ...]


def split_pieces(pieces: Sequence[Piece], *, heldout: Sequence[Piece] | None, seed: int) -> Splits:
    """Held-out as given, or about 12 % of the characters; validation about 10 %, at least one piece; the rest is train.

    Copies of given held-out texts are left out of the others. Pieces with the same prompt are a group, since its answers would
    leak. Five groups or more are dealt out whole; fewer are cut into pages and give contiguous blocks. Raises DataError for too
    little text.
    """
    known = {_content(piece) for piece in heldout or ()}
    given, pieces = len(pieces), [piece for piece in pieces if _content(piece) not in known]
    total = sum(piece.size for piece in pieces)
    if total < MIN_CHARACTERS:
        raise DataError(
            "too little text to learn from",
            expected=f"at least {MIN_CHARACTERS:,} characters, better a hundred times that",
            got=f"{total:,} in {_number(len(pieces), 'piece')}"
            + f", after {_number(given - len(pieces), 'piece')} that --heldout has as well" * (given > len(pieces)),
        )
    if heldout is not None and not heldout:
        raise DataError("the held-out texts are empty", where="--heldout")
    groups, reason = _groups(pieces)
    dominant = any(piece.size > DOMINANT * total and len(pages(piece, PAGE)) >= MIN_PAGES for piece in pieces)
    if len(groups) < MIN_GROUPS or dominant:
        sets, how = _by_blocks(pieces, heldout, seed)
    else:
        sets, how = _by_group(pieces, groups, heldout, seed)
        how += reason
    train, validation, held = sets
    lines = overlap_lines(train, validation, held)
    if heldout is not None and lines and lines[0].startswith("held-out"):
        lines[0] = f"WARNING: {lines[0]}; take them out of one side"
    if given > len(pieces):
        lines.append(f"{_number(given - len(pieces), 'piece')} of DATA held out as well: left out of the training")
    copies = repeated(train)
    if copies:
        lines.append(f"train: {copies} of {len(train)} pieces repeat another one exactly")
    return Splits(train, validation, held, how, tuple(lines))


def _groups(pieces: Sequence[Piece]) -> tuple[list[list[int]], str]:
    """Indices of pieces that must stay together, and a clause for the user if a prompt is too common for that."""
    by_opening: dict[str, list[int]] = defaultdict(list)
    for i, piece in enumerate(pieces):
        by_opening[_opening(piece) or _content(piece)].append(i)
    total = sum(piece.size for piece in pieces)
    groups: list[list[int]] = []
    common = 0
    for members in by_opening.values():
        contents: dict[str, list[int]] = defaultdict(list)
        for i in members:
            contents[_content(pieces[i])].append(i)
        if len(contents) > 1 and sum(pieces[i].size for i in members) > LARGEST * total:
            groups += contents.values()  # one instruction for all records: only the answers differ
            common += len(members)
        else:
            groups.append(members)
    return groups, f"; {common} records share one prompt and were split one by one" if common else ""


def _opening(piece: Piece) -> str:
    """A digest of what comes before the first answer; "" without a user's words."""
    if piece.kind == "completion":
        return _folded("completion", piece.prompt) if piece.prompt.strip() else ""
    if piece.kind == "text":
        return ""
    before = []
    for message in piece.messages:
        if message["role"] == "assistant":
            break
        before.append(message)
    if not any(message["role"] == "user" for message in before):
        return ""
    return _folded("chat", *(part for message in before for part in (message["role"], message["content"])))


def _content(piece: Piece) -> str:
    return _folded(piece.kind, piece.prompt, piece.words)


def _folded(*parts: str) -> str:
    """A digest that ignores case and white space."""
    plain = "\0".join(" ".join(part.casefold().split()) for part in parts)
    return hashlib.sha256(plain.encode()).hexdigest()


def _by_group(
    pieces: Sequence[Piece], groups: list[list[int]], heldout: Sequence[Piece] | None, seed: int
) -> tuple[tuple[tuple[Piece, ...], ...], str]:
    rest = groups
    held: list[list[int]] = []
    if heldout is None:
        held, rest = _deal(pieces, rest, HELDOUT, f"held-out {seed}")
    validation, train = _deal(pieces, rest, VALIDATION, f"validation {seed}")
    sets = [tuple(pieces[i] for i in sorted(chain.from_iterable(part))) for part in (train, validation, held)]
    if heldout is not None:
        sets[2] = tuple(heldout)
    whole = sum(piece.size for piece in pieces)
    share = [sum(piece.size for piece in part) / whole for part in sets]
    kind = _kind(pieces)
    how = f"validation is {len(sets[1])} of {len(pieces)} {kind}s ({share[1]:.0%} of the text)"
    if heldout is None:
        held_out = f"held-out is {len(sets[2])} of {len(pieces)} {kind}s ({share[2]:.0%} of the text)"
        how = f"split by {kind}: {held_out}, {how}"
    else:
        how = f"held-out is as given ({_number(len(heldout), 'piece')}); split by {kind}: {how}"
    return tuple(sets), how


def _kind(pieces: Sequence[Piece]) -> str:
    """What the user calls the pieces: records and documents have a number in their names, files do not."""
    kinds = {_kind_by_name(piece.name) for piece in pieces}
    return kinds.pop() if len(kinds) == 1 else "piece"


def _kind_by_name(name: str) -> str:
    found = re.search(r", (document|part) \d+$", name)
    if found:
        return found[1]
    return "record" if re.search(r":\d+$", name) else "file"


def _deal(
    pieces: Sequence[Piece], groups: list[list[int]], share: float, salt: str
) -> tuple[list[list[int]], list[list[int]]]:
    """(groups drawn until they hold `share` of the characters, the others). At least one group, at most a third."""
    sizes = [sum(pieces[i].size for i in group) for group in groups]
    lots = [_draw(salt, _content(pieces[group[0]])) for group in groups]
    wanted, most = share * sum(sizes), LARGEST * sum(sizes)
    drawn: set[int] = set()
    got = 0
    for g in sorted(range(len(groups)), key=lambda g: lots[g]):
        if got < wanted and got + sizes[g] <= most and 3 * (len(drawn) + 1) <= max(3, len(groups)):
            drawn.add(g)
            got += sizes[g]
    if not drawn:
        drawn.add(min(range(len(groups)), key=lambda g: (sizes[g], lots[g])))
    return [groups[g] for g in sorted(drawn)], [group for g, group in enumerate(groups) if g not in drawn]


def _draw(salt: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}\0{key}".encode()).digest()[:8], "big")


def _by_blocks(
    pieces: Sequence[Piece], heldout: Sequence[Piece] | None, seed: int
) -> tuple[tuple[tuple[Piece, ...], ...], str]:
    """From every text of three pages or more, one run of pages for each small set; the other pages are train."""
    size = max(1, min(PAGE, sum(piece.size for piece in pieces) // (MIN_PAGES * 2 * MIN_GROUPS)))
    sets: dict[str, list[Piece]] = {"train": [], "validation": [], "held-out": []}
    places: dict[str, list[str]] = {}
    for piece in pieces:
        parts = pages(piece, size)
        labels = _labels(len(parts), heldout is None, seed, digest(piece))
        for first, end in _runs(labels):
            part = piece if end - first == len(parts) else joined(piece, parts, first, end)
            sets[labels[first]].append(part)
            if labels[first] != "train":
                places.setdefault(labels[first], []).append(part.name)
    if not places:
        raise DataError(
            "too few different pieces to split",
            expected=f"{MIN_GROUPS} with prompts of their own, or a text or chat of some length",
            got=_number(len(pieces), "piece"),
        )
    if heldout is not None:
        sets["held-out"] = list(heldout)
        places["held-out"] = [f"as given ({_number(len(heldout), 'piece')})"]
    where = (
        f"{label} is {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for label, names in sorted(places.items())
    )
    cut = f"split by blocks of pages of about {size:,} characters, as there are few pieces or one outweighs the others"
    flatters = (
        "; pages of one work are alike, so another work as --heldout is a stricter test" if heldout is None else ""
    )
    how = f"{cut}: {'; '.join(where)}{flatters}"
    return (tuple(sets["train"]), tuple(sets["validation"]), tuple(sets["held-out"])), how


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _labels(n: int, with_heldout: bool, seed: int, key: str) -> list[str]:
    """The set of each of `n` pages of one piece."""
    labels = ["train"] * n
    if n < MIN_PAGES:
        return labels
    shares = [("held-out", HELDOUT)] if with_heldout else []
    for name, share in [*shares, ("validation", VALIDATION)]:
        length = max(1, round(share * n))
        free = [at for at in range(n - length + 1) if set(labels[at : at + length]) == {"train"}]
        at = free[_draw(f"{name} {seed}", key) % len(free)]
        labels[at : at + length] = [name] * length
    return labels


def _runs(labels: Sequence[str]) -> list[tuple[int, int]]:
    starts = [i for i in range(len(labels)) if i == 0 or labels[i] != labels[i - 1]]
    return list(zip(starts, [*starts[1:], len(labels)], strict=True))
