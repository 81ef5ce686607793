"""The library: folders of soft prompt files, into which people drop files by hand while programs run, and other sources.

An entry is a `.zip`, a `.kv.zip` (a KV prompt), a `.mix.zip` (a mixture), or a folder that holds an unpacked soft prompt or a PEFT
one; `install` converts other kinds of file. Its name is its file name without that ending, made readable (`v (1).zip` is `v-1`) and
unique: see `names`.
"""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import platformdirs

from sordino import formats
from sordino.errors import (
    BadInput,
    DoesNotFit,
    NameTaken,
    NotInLibrary,
    SoftPromptFileError,
    SordinoError,
    StorageError,
)
from sordino.formats.torch_files import PICKLE_ENDINGS
from sordino.library import trash
from sordino.library.entry import Entry, entry_of, may_pass, reason
from sordino.library.files import FolderSource, changing, is_prompt_folder, listed
from sordino.library.names import ENDINGS, checked_name, did_you_mean, unique_names, without_ending
from sordino.library.packaged import seed, write_packaged
from sordino.library.source import Item, Source
from sordino.prompts.fit import check_one_base
from sordino.prompts.mixture import Mixture, StoredPrompt, components_of
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.storage import make_folder

_OTHER_KINDS = frozenset({".json", ".npy", ".safetensors", *PICKLE_ENDINGS})
# A broken file that was changed less than this before it was read may be half-copied, and is read again.
_SETTLED_SECONDS = 2.0


class Library:
    """Soft prompts in one or several folders; new ones are written to the first. Owns a cache of headers in memory.

    sources: other places, which are only read; their soft prompts are listed after those of the folders.
    """

    def __init__(self, folders: Sequence[Path], sources: Sequence[Source] = ()) -> None:
        if not folders:
            raise BadInput("no folder is named", where="--library")
        # Each once: the same folder twice would list everything twice.
        self.folders = tuple(dict.fromkeys(Path(os.path.expanduser(folder)).absolute() for folder in folders))
        self.sources: tuple[Source, ...] = (*map(FolderSource, self.folders), *sources)
        self._known: dict[Path, Entry] = {}

    def scan(self) -> list[Entry]:
        """All entries, by source and name; those that did not change are the same objects as before. Reads the headers of files
        that are new or changed, never a tensor.

        Never raises because of a file: a broken or half-copied one is an entry with an error, and is read again when it has
        changed; one that vanishes meanwhile is left out.
        """
        found = [(source, item) for source in self.sources for item in source.list()]
        names = unique_names([(source, item.label) for source, item in found])
        known: dict[Path, Entry] = {}
        entries: list[Entry] = []
        for name, (source, item) in zip(names, found, strict=True):
            entry = self._known.get(item.path)
            if entry is None or entry.revision != item.revision:
                began = time.time()
                try:
                    entry = entry_of(name, source, item, source.describe(item))
                except (SordinoError, OSError) as error:
                    if isinstance(source, FolderSource) and not os.path.lexists(item.path):
                        continue
                    entry = entry_of(name, source, item, reason(error, item.path))
                    if may_pass(error) or abs(began - item.changed) < _SETTLED_SECONDS:
                        entries.append(entry)
                        continue
            elif entry.name != name or entry.source is not source:
                entry = replace(entry, name=name, source=source)
            known[entry.path] = entry
            entries.append(entry)
        # Replaced whole: a scan in another thread sees the old entries or the new, and vanished files are forgotten.
        self._known = known
        return entries

    def open(self, entry: Entry) -> Path:
        """The local file or folder of an entry. Raises NotInLibrary where it is gone, and what its source raises."""
        if entry.source is None:
            raise NotInLibrary("the file is gone", where=entry.name)
        return entry.source.open(Item(entry.name, entry.path, entry.revision))

    def comparable_to(self, own: SoftPrompt) -> tuple[dict[str, SoftPrompt], list[str]]:
        """Other embedding prompts of the same base model by name; and what was left out, a line each."""
        found: dict[str, SoftPrompt] = {}
        notes, others = [], 0
        for entry in self.scan():
            if entry.kind not in ("", SoftPrompt.kind):
                continue
            try:
                prompt = formats.read(self.open(entry))
                check_one_base([own, prompt], "compared")
            except DoesNotFit:
                others += 1
            except SordinoError as error:
                notes.append(error.message)
            else:
                if prompt.content_hash != own.content_hash:
                    found[entry.name] = prompt
        return found, [*notes, *([f"Left out, as they were made for another base model: {others}."] if others else [])]

    def missing_folders(self) -> list[Path]:
        """Folders that do not exist: a typing error, or a drive that is not mounted."""
        return [folder for folder in self.folders if not os.path.isdir(folder)]

    def absences(self) -> list[str]:
        """A line for each of `missing_folders`."""
        faults = {True: "is a file, not a folder", False: "does not exist"}
        return [f"the library folder {path} {faults[path.is_file()]}" for path in self.missing_folders()]

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
        absent = self.absences()
        if entries or absent:
            advice = "check the spelling; `sordino list` shows all names"
        else:
            advice = f"the library {self.folders[0]} is empty: train one with `sordino train`, or drop a .zip there"
        advice = did_you_mean(wanted, [entry.name for entry in entries], advice)
        # Last: a misspelt name is likelier than a folder that is gone.
        advice += f" ({'; '.join(absent)})" if absent else ""
        raise NotInLibrary("no file and no soft prompt in the library has this name", where=wanted or "''", do=advice)

    def resolve(self, name_or_path: str) -> Path:
        """The file or folder at that path, or the entry of that name, opened.

        A folder that is not a soft prompt does not hide an entry of its name. Raises NotInLibrary, or SoftPromptFileError
        for what can only be a path.
        """
        # os.path, not Path: these answer False to what no file can be called, where Path raises.
        text = os.path.expanduser(name_or_path)
        path = Path(text)
        if os.path.isfile(text) or (text and is_prompt_folder(path)):
            return path
        there = os.path.lexists(text)
        if path.name == name_or_path:
            with suppress(NotInLibrary) if there else nullcontext():
                return self.open(self.entry(name_or_path))
        if os.path.isdir(text):
            return path
        what = "neither a file nor a folder" if there else "no such file"
        raise SoftPromptFileError(what, where=name_or_path, do="`sordino list` shows the names in the library")

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
            # One that was killed after its write left the others.
            if there is not None and _same(there, prompt) and not (replace and others):
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
        make_folder(self.folders[0], parents=False)
        try:
            # Its warnings are about other programs; a library reads all that the file holds.
            with changing(self.folders[0]) if replace else nullcontext():
                formats.write_any(prompt, target, force=replace)
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
        with changing(folder):
            return trash.discard(folder / entry.path.relative_to(folder).parts[0])

    def restore(self, trashed: str) -> Entry:
        """Put back what the trash has under this name, as `trash.shown_name`.

        Raises NotInLibrary, NameTaken where another file has its name by now, StorageError.
        """
        target = trash.put_back(self.folders, trashed)
        inside = (one for one in self.scan() if target in (one.path, *one.path.parents))
        return next(inside, self._entry_at(target))

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


def open_library(folders: Sequence[Path] = ()) -> Library:
    """The library in these folders, else in those of SORDINO_LIBRARY, else the default one, which is made and seeded once.

    A named folder that does not exist counts as empty; `missing_folders` lists it.
    """
    if not folders and not os.environ.get("SORDINO_LIBRARY"):
        with suppress(StorageError):
            # With a read-only home, commands that read other files must still work.
            make_folder(default_folders()[0])
            seed(default_folders()[0])
    return Library(folders or default_folders())


def add_packaged(library: Library) -> list[Entry]:
    """Add the packaged soft prompts to a library, except those whose names are taken. Raises StorageError."""
    return [library.entry(name) for name in write_packaged(library.folders[0])]


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
