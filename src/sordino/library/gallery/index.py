"""gallery.json: what a gallery offers, as data (docs/formats.md). Reading it opens no file and asks no network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal
from urllib.parse import urlsplit

from sordino.errors import BadInput, SoftPromptFileError
from sordino.formats.json_text import parse
from sordino.formats.meta import checked, newer, wrong
from sordino.formats.meta_keys import BASE_KEYS, Keys, is_hash, is_number, is_object, is_sample, is_size
from sordino.library.names import ENDINGS, checked_name
from sordino.prompts.fit import Stated
from sordino.prompts.soft_prompt import MAX_WIDTH, RATINGS, BaseRef, Metadata, Rating

FORMAT, VERSION = "sordino gallery", 1
FILE = "gallery.json"
MAX_INDEX = 8 << 20
MAX_ENTRIES = 10_000
# Larger than any matrix can be; a KV prompt beyond it has no place in a gallery.
MAX_FILE = 1 << 30
MAX_SAMPLES, MAX_TAGS = 4, 32
MAX_LINE, MAX_URL, MAX_TEXT = 300, 2000, 8000


@dataclass(frozen=True)
class GalleryEntry:
    """A soft prompt that a gallery offers, as its index describes it.

    name: in the library of whoever installs it. url: absolute, or relative to the index. sha256: of the file, "" where a list page
    states none. title: for people. base: of its file. gain: nats per token on held-out texts, None where it was not measured.
    samples: {"prompt", "with", "without"} objects of strings.
    """

    name: str
    url: str
    sha256: str
    bytes: int
    kind: str
    n_tokens: int
    d_model: int
    base: BaseRef = field(default_factory=BaseRef)
    title: str = ""
    author: str = ""
    description: str = ""
    licence: str = ""
    rating: Rating | Literal[""] = ""
    tags: tuple[str, ...] = ()
    created: str = ""
    gain: float | None = None
    samples: tuple[Mapping[str, str], ...] = ()

    @property
    def stated(self) -> Stated:
        """What decides about the fit. Whether a KV prompt's heads agree is known once its file is here."""
        return Stated(Metadata(name=self.title or self.name, base=self.base), self.d_model)

    @property
    def is_mature(self) -> bool:
        """Whether it is shown only to those who ask for it."""
        return self.rating in ("mature", "explicit")


@dataclass(frozen=True)
class GalleryIndex:
    """What a gallery offers. title: for people, "" where it has none."""

    title: str
    entries: tuple[GalleryEntry, ...]


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LINE and value.isprintable()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def is_url(value: Any) -> bool:
    """Whether it may be an entry's url: relative, or of HTTP. Where it leads is checked when it is opened."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= MAX_URL:
        return False
    try:
        return urlsplit(value).scheme in ("", "http", "https")
    except ValueError:
        # "http://[".
        return False


def _is_sample(value: Any) -> bool:
    return is_sample(value) and all(map(_is_text, value.values()))


_LINE = (f"a line of at most {MAX_LINE} characters", _is_line)
_HEAD: Keys = {
    "format": (repr(FORMAT), lambda value: value == FORMAT),
    "version": (f"{VERSION}", is_size),
    "title": _LINE,
    "entries": (
        f"a list of at most {MAX_ENTRIES} objects",
        lambda value: isinstance(value, list) and len(value) <= MAX_ENTRIES and all(map(is_object, value)),
    ),
}
_ENTRY: Keys = {
    "name": _LINE,
    "url": (f"a relative address or one of HTTP, of at most {MAX_URL} characters", is_url),
    "sha256": ("64 hexadecimal digits", is_hash),
    "bytes": (f"a whole number from 1 to {MAX_FILE}", lambda value: is_size(value) and 1 <= value <= MAX_FILE),
    "kind": (", ".join(ENDINGS), lambda value: value in ENDINGS),
    "n_tokens": ("a whole number above 0", lambda value: is_size(value) and value > 0),
    "d_model": (f"a whole number up to {MAX_WIDTH}", lambda value: is_size(value) and value <= MAX_WIDTH),
    "base": ("an object", is_object),
    "title": _LINE,
    "author": _LINE,
    "description": (f"a text of at most {MAX_TEXT} characters", _is_text),
    "licence": _LINE,
    "rating": (", ".join(RATINGS), lambda value: value in RATINGS),
    "tags": (
        f"a list of at most {MAX_TAGS} lines",
        lambda value: isinstance(value, list) and len(value) <= MAX_TAGS and all(map(_is_line, value)),
    ),
    "created": _LINE,
    "gain": ("a number", lambda value: is_number(value) and math.isfinite(value) and abs(value) < 1e6),
    "samples": (
        f'a list of at most {MAX_SAMPLES} objects of texts "prompt", "with", "without"',
        lambda value: isinstance(value, list) and len(value) <= MAX_SAMPLES and all(map(_is_sample, value)),
    ),
}
_REQUIRED = ("name", "url", "sha256", "bytes", "kind", "n_tokens", "d_model")
_ADVICE = "tell whoever made the gallery"


def read_index(data: bytes, where: str) -> GalleryIndex:
    """The index in `data`. Raises SoftPromptFileError, naming the entry and the key."""
    if len(data) > MAX_INDEX:
        raise SoftPromptFileError("too large", where=where, expected=f"at most {MAX_INDEX} bytes", got=len(data))
    obj = parse(data, where)
    if obj.get("format") != FORMAT:
        raise SoftPromptFileError(
            "not a gallery", where=where, expected=f'"format": "{FORMAT}"', got="another JSON file"
        )
    version = obj.get("version")
    if type(version) is int and version > VERSION:
        raise newer(where, f"version {VERSION}", version)
    given = checked(obj, _HEAD, where, ("format", "version", "entries"), do=_ADVICE)
    if version != VERSION:
        raise wrong(f"{where}.version", str(VERSION), version)
    entries = tuple(
        entry_from_json(entry, f"{where}: entries[{number}]") for number, entry in enumerate(given["entries"])
    )
    names = set[str]()
    for entry in entries:
        if entry.name.casefold() in names:
            raise SoftPromptFileError("two entries have one name", where=where, got=entry.name, do=_ADVICE)
        names.add(entry.name.casefold())
    return GalleryIndex(given.get("title", ""), entries)


def entry_from_json(obj: Mapping[str, Any], where: str, *, hashed: bool = True) -> GalleryEntry:
    """hashed: whether it must state the file's hash. Raises SoftPromptFileError."""
    required = _REQUIRED if hashed else tuple(key for key in _REQUIRED if key != "sha256")
    given = {"sha256": "", **checked(obj, _ENTRY, where, required, do=_ADVICE)}
    try:
        name = checked_name(given["name"])
    except BadInput as error:
        raise SoftPromptFileError("a name that a soft prompt cannot have", where=where, got=error.got) from error
    if name != given["name"]:
        raise wrong(f"{where}.name", "a name without the file's ending, in Unicode's form NFC", given["name"])
    base = BaseRef(**checked(given.get("base", {}), BASE_KEYS, f"{where}.base", do=_ADVICE))
    if not all(map(_is_line, (base.id, base.family, base.fingerprint))) or base.d_model not in (0, given["d_model"]):
        raise wrong(f"{where}.base", "short texts, and the width of d_model", given["base"])
    given |= {key: tuple(given[key]) for key in ("tags", "samples") if key in given}
    return GalleryEntry(**given | {"base": base})


def entry_to_json(entry: GalleryEntry) -> dict[str, Any]:
    """The object that `entry_from_json` reads: keys in the order of the table, empty values left out."""
    base = {key: value for key, value in asdict(entry.base).items() if value}
    values = {item.name: getattr(entry, item.name) for item in fields(entry)}
    values |= {"base": base, "tags": list(entry.tags), "samples": [dict(sample) for sample in entry.samples]}
    return {key: values[key] for key in _ENTRY if values[key] not in ("", [], {}, None)}


def write_index(index: GalleryIndex) -> bytes:
    """gallery.json: UTF-8, indented by two, ending in a line feed. Raises BadInput for what could not be read again."""
    obj: dict[str, Any] = {"format": FORMAT, "version": VERSION, "title": index.title}
    obj |= {"entries": [entry_to_json(entry) for entry in index.entries]}
    data = (json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()
    read_index(data, FILE)
    return data
