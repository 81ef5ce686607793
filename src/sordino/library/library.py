"""The library: folders of soft prompt files, into which people drop files by hand while programs run, and other sources.

An entry is a `.zip`, a `.kv.zip` (a KV prompt), a `.mix.zip` (a mixture), or a folder that holds an unpacked soft prompt or a PEFT
one; `install` converts other kinds of file. Its name is its file name without that ending, made readable (`v (1).zip` is `v-1`) and
unique: see `names`.
"""

from __future__ import annotations

import os
import secrets
import time
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import platformdirs

from sordino import formats
from sordino.errors import BadInput, NameTaken, NotInLibrary, SoftPromptFileError, SordinoError, StorageError
from sordino.library.files import FolderSource, is_prompt_folder, listed, make_folder, move_file
from sordino.library.names import ENDINGS, checked_name, default_name, near_misses, unique_names, without_ending
from sordino.library.packaged import seed, write_packaged
from sordino.library.source import Item, Source
from sordino.prompts.fit import Stated
from sordino.prompts.mixture import Mixture, StoredPrompt, components_of
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

_OTHER_KINDS = frozenset({".json", ".npy", ".safetensors", ".pt", ".bin", ".nemo"})
_TRASH = ".trash"
# A broken file that was changed less than this before it was read may be half-copied, and is read again.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Entry:
    """A soft prompt of the library, as its header describes it. A broken file has `error` (one line) and no sizes.

    path: where it is, or will be once `Library.open` was called. kind: `Prompt.kind`, or "mixture". d_model: 0 where a KV prompt
    does not say it. components: of a mixture, whose n_tokens is the longest component's; 0 for one prompt. parts: what each
    component says, or the one prompt. revision: changes when the content does. source: None for a file that vanished.
    """

    name: str
    path: Path
    n_tokens: int = 0
    d_model: int = 0
    metadata: Metadata = field(default_factory=Metadata)
    format: str = ""
    error: str = ""
    kind: str = ""
    components: int = 0
    parts: tuple[Stated, ...] = ()
    revision: Hashable = ()
    source: Source | None = field(default=None, compare=False)


class Library:
    """Soft prompts in one or several folders; new ones are written to the first. Owns a cache of headers in memory.

    sources: other places whose soft prompts are listed behind those of the folders, and only read.
    """

    def __init__(self, folders: Sequence[Path], sources: Sequence[Source] = ()) -> None:
        if not folders:
            raise BadInput("a library needs a folder", where="--library")
        # Each once: the same folder twice would list everything twice.
        self.folders = tuple(dict.fromkeys(Path(os.path.expanduser(folder)).absolute() for folder in folders))
        self.sources: tuple[Source, ...] = (*map(FolderSource, self.folders), *sources)
        self._headers: dict[tuple[Path, Hashable], formats.Peek | str] = {}

    def scan(self) -> list[Entry]:
        """All entries, by source and name. Reads the headers of files that are new or changed, never a tensor.

        Never raises because of a file: a broken or half-copied one is an entry with an error, and is read again when it has
        changed; one that vanishes meanwhile is left out.
        """
        found = [(source, item) for source in self.sources for item in source.list()]
        names = unique_names([(source, item.label) for source, item in found])
        headers: dict[tuple[Path, Hashable], formats.Peek | str] = {}
        entries: list[Entry] = []
        for name, (source, item) in zip(names, found, strict=True):
            key = (item.path, item.revision)
            header = self._headers.get(key)
            if header is None:
                began = time.time()
                try:
                    header = source.describe(item)
                except (SordinoError, OSError) as error:
                    if isinstance(source, FolderSource) and not os.path.lexists(item.path):
                        continue
                    header = _reason(error, item.path)
                    if _may_pass(error) or abs(began - item.changed) < _SETTLED_SECONDS:
                        entries.append(_entry(name, source, item, header))
                        continue
            headers[key] = header
            entries.append(_entry(name, source, item, header))
        # Replaced whole: a scan in another thread sees the old headers or the new, and vanished files are forgotten.
        self._headers = headers
        return entries

    def open(self, entry: Entry) -> Path:
        """The local file or folder of an entry. Raises NotInLibrary where it is gone, and what its source raises."""
        if entry.source is None:
            raise NotInLibrary("the file is gone", where=entry.name)
        return entry.source.open(Item(entry.name, entry.path, entry.revision))

    def read_soft_prompts(self) -> tuple[dict[str, SoftPrompt], list[str]]:
        """Every embedding prompt that can be read, by name, and why others cannot; other kinds are left out."""
        found: dict[str, SoftPrompt] = {}
        broken = []
        for entry in self.scan():
            if entry.kind not in ("", SoftPrompt.kind):
                continue
            try:
                found[entry.name] = formats.read(self.open(entry))
            except SordinoError as error:
                broken.append(error.message)
        return found, broken

    def missing_folders(self) -> list[Path]:
        """Folders that do not exist: a typing error, or a drive that is not mounted."""
        return [folder for folder in self.folders if not os.path.isdir(folder)]

    def other_files(self) -> list[Path]:
        """Files that may be soft prompts of another format: not entries until they are installed."""
        return [
            Path(item.path)
            for folder in self.folders
            for item in listed(folder)
            if Path(item.name).suffix.lower() in _OTHER_KINDS and item.is_file()
        ]

    def entry(self, name: str) -> Entry:
        """The entry of this name, or of this file name (`v (1).zip`). Raises NotInLibrary."""
        entries, wanted = self.scan(), unicodedata.normalize("NFC", name)
        spellings = [(entry.name, entry.path.name, entry.path.stem) for entry in entries]
        for kind in range(3):
            for entry, spelling in zip(entries, spellings, strict=True):
                if unicodedata.normalize("NFC", spelling[kind]) == wanted:
                    return entry
        if missing := self.missing_folders():
            advice = f"the library folder {missing[0]} does not exist: make it, mount its drive, or correct --library"
        elif not entries:
            advice = f"the library {self.folders[0]} is empty: train one with `sordino train`, or drop a .zip there"
        else:
            close = near_misses(wanted, [entry.name for entry in entries])
            advice = f"did you mean {' or '.join(close)}?" if close else "`sordino list` shows all names"
        raise NotInLibrary("no file and no soft prompt in the library has this name", where=wanted, do=advice)

    def resolve(self, name_or_path: str) -> Path:
        """The file or folder at that path, or the entry of that name, opened.

        A folder that is not a soft prompt does not hide an entry of its name. Raises NotInLibrary, or SoftPromptFileError
        for what can only be a path.
        """
        # os.path, not Path: these answer False to what no file can be called, where Path raises.
        text = os.path.expanduser(name_or_path)
        path = Path(text)
        if os.path.isfile(text) or is_prompt_folder(path):
            return path
        if path.name == name_or_path:
            return self.open(self.entry(name_or_path))
        if os.path.isdir(text):
            return path
        raise SoftPromptFileError(
            "no such file", where=name_or_path, do="`sordino list` shows the names in the library"
        )

    def install(
        self, source: Path, *, name: str | None = None, replace: bool = False, index: int | None = None
    ) -> Entry:
        """Read a soft prompt file of any format, or a mixture, and `add` it under `name` (default: the file's)."""
        return self.add(
            formats.read_any(source, index=index), name=default_name(source) if name is None else name, replace=replace
        )

    def add(self, prompt: StoredPrompt, *, name: str, replace: bool = False) -> Entry:
        """Write the native file of its kind, NAME and an ending of ENDINGS, into the first folder, atomically.

        A file with the same content is left as it is. Raises BadInput for a name that is not allowed on every system, NameTaken
        for one that another soft prompt has (unless `replace`), StorageError where the disk refuses.
        """
        name = checked_name(name)
        prompt = prompt if prompt.metadata.name else prompt.with_metadata(name=name)
        places = {kind: self._place_for(name + ending) for kind, ending in ENDINGS.items()}
        target = places.pop(prompt.kind)
        others = [place for place in places.values() if place.exists()]
        if target.exists():
            there = _read_if_good(target)
            if there is not None and _same(there, prompt):
                return self._entry_at(target)
            if target.is_dir():
                raise BadInput(
                    "a folder has this name", where=target, do="`sordino remove` it first, or choose another --name"
                )
        if not replace and (target.exists() or others):
            raise NameTaken(
                "another soft prompt has this name",
                where=name,
                do="--replace puts this one in its place, --name gives it another name",
            )
        make_folder(self.folders[0])
        try:
            formats.write_native(prompt, target, force=replace)
        except BadInput:
            if replace or not target.exists():
                raise
            # Another server or another request took the name meanwhile.
            return self.add(prompt, name=name)
        for other in others:
            # Both would have this name; what was replaced is in the trash.
            with suppress(NotInLibrary):
                self.remove(self._entry_at(other))
        return self._entry_at(target)

    def twin(self, prompt: StoredPrompt) -> Entry | None:
        """An entry with the same content hash, whatever its name, or None. Reads the tensors of the entries of that shape."""
        components = len(prompt.components) if isinstance(prompt, Mixture) else 0
        for entry in self.scan():
            sizes = (entry.kind, entry.n_tokens, entry.d_model, entry.components)
            if sizes == (prompt.kind, prompt.n_tokens, prompt.d_model, components):
                other = _read_if_good(entry.path)
                if other is not None and other.content_hash == prompt.content_hash:
                    return entry
        return None

    def remove(self, which: str | Entry) -> Path:
        """Move an entry (or the one of this name) into the hidden `.trash` of its folder. Returns where it is now.

        Raises NotInLibrary, BadInput for an entry of another source, StorageError where the disk refuses: the file then stays.
        """
        entry = self.entry(which) if isinstance(which, str) else which
        folder = next((folder for folder in self.folders if folder in entry.path.parents), None)
        if folder is None:
            raise BadInput(
                "this soft prompt is in no folder of the library", where=entry.name, do="remove it at its source"
            )
        # A folder in a folder is one entry: move the outer one.
        top = folder / entry.path.relative_to(folder).parts[0]
        trash = folder / _TRASH
        make_folder(trash)
        stem = without_ending(top.name)
        place = trash / top.name
        try:
            while not move_file(top, place):
                place = trash / f"{stem}-{secrets.token_hex(4)}{top.name.removeprefix(stem)}"
        except OSError as error:
            if not os.path.lexists(top):
                raise NotInLibrary("the file is gone: another program removed it", where=entry.name) from error
            raise StorageError(
                f"could not be removed ({error.strerror})",
                where=top,
                do="it is still there; close programs that hold it open",
            ) from error
        return place

    def _place_for(self, wanted: str) -> Path:
        """The path of a file of this name: an existing one's if only the case differs, as some drives see no case."""
        names = {unicodedata.normalize("NFC", item.name): Path(item.path) for item in listed(self.folders[0])}
        alike = (path for there, path in names.items() if there.casefold() == wanted.casefold())
        return names.get(wanted) or next(alike, self.folders[0] / wanted)

    def _entry_at(self, path: Path) -> Entry:
        vanished = Entry(without_ending(path.name), path, error="the file vanished")
        return next((entry for entry in self.scan() if entry.path == path), vanished)


def default_folders() -> list[Path]:
    """The folders of SORDINO_LIBRARY (separated as in PATH), else one in the user's data directory."""
    named = [Path(os.path.expanduser(part)) for part in os.environ.get("SORDINO_LIBRARY", "").split(os.pathsep) if part]
    return named or [Path(platformdirs.user_data_dir("sordino", appauthor=False)) / "soft_prompts"]


def default_folder() -> Path:
    """The folder that new soft prompts are written to."""
    return default_folders()[0]


def open_library(folders: Sequence[Path] = ()) -> Library:
    """The library in these folders, else in those of SORDINO_LIBRARY, else the default one, which is made and seeded once.

    A named folder that does not exist counts as empty; `missing_folders` lists it.
    """
    if not folders and not os.environ.get("SORDINO_LIBRARY"):
        with suppress(StorageError):
            # With a read-only home, commands that read other files must still work.
            make_folder(default_folder(), parents=True)
            seed(default_folder())
    return Library(folders or default_folders())


def add_packaged(library: Library) -> list[Entry]:
    """Add the packaged soft prompts to a library, except those whose names are taken. Raises StorageError."""
    return [library.entry(name) for name in write_packaged(library.folders[0])]


def edit(path: Path, changes: Mapping[str, Any]) -> StoredPrompt:
    """Replace metadata fields of a native file, atomically; the numbers stay the same. Returns the new content.

    Raises BadInput for other files (their formats cannot hold the fields), StorageError where the disk refuses: the old file is
    then intact.
    """
    prompt = formats.read_any(path).with_metadata(**changes)
    if not path.is_file() or formats.detect(path) not in ("kobold", "kv", "mixture"):
        raise BadInput(
            "only a native .zip can be edited", where=path, do="`sordino install` or `sordino convert` makes one of it"
        )
    if isinstance(prompt, SoftPrompt) and (others := formats.other_members(path)):
        raise BadInput(
            "this zip holds more than a soft prompt, which writing it anew would drop",
            where=path,
            got=", ".join(others[:4]),
            do="`sordino install` makes a clean copy, which can be edited",
        )
    formats.write_native(prompt, path, force=True)
    return prompt


def _same(one: StoredPrompt, other: StoredPrompt) -> bool:
    """Whether their files would be the same bytes."""
    if one.content_hash != other.content_hash or one.metadata != other.metadata:
        return False
    pairs = zip(components_of(one), components_of(other), strict=True)
    return all(
        first is not None and second is not None and first.metadata == second.metadata for first, second in pairs
    )


def _read_if_good(path: Path) -> StoredPrompt | None:
    try:
        return formats.read_any(path)
    except (SordinoError, OSError):
        return None


def _entry(name: str, source: Source, item: Item, header: formats.Peek | str) -> Entry:
    """header: or why it cannot be read."""
    entry = Entry(name, item.path, revision=item.revision, source=source)
    if isinstance(header, str):
        return replace_fields(entry, error=header)
    return replace_fields(
        entry,
        n_tokens=header.n_tokens,
        d_model=header.d_model,
        metadata=header.metadata,
        format=header.format,
        kind=header.kind,
        components=header.components,
        parts=header.parts,
    )


def _may_pass(error: SordinoError | OSError) -> bool:
    """Whether the disk failed and not the content: a drive that comes back, a file that another program has locked."""
    cause = error if isinstance(error, OSError) else error.__cause__
    # Libraries that unpack raise an OSError of no number for what they cannot read.
    return isinstance(cause, OSError) and cause.errno is not None


def _reason(error: Exception, path: Path) -> str:
    """The error on one line, without the path, which the entry states."""
    return " ".join(str(error).split()).removeprefix(f"{' '.join(str(path).split())}: ")
