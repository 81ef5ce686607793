"""The library: folders of soft prompt files, into which people drop files by hand while programs run.

An entry is a `.zip`, a `.mix.zip` (a mixture), or a folder that holds an unpacked soft prompt or a PEFT one; other kinds
of file come in by `install`. Its name is its file name without that ending, made readable (`v (1).zip` is `v-1`) and
unique: see library_names.
"""

from __future__ import annotations

import os
import secrets
import time
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import platformdirs

from sordino import formats
from sordino.errors import BadInput, NameTaken, NotInLibrary, SoftPromptFileError, SordinoError, StorageError
from sordino.library.files import Stamp, changed_at, find, is_prompt_folder, listed
from sordino.library.names import MIXTURE_ENDING, checked_name, default_name, near_misses, unique_names, without_ending
from sordino.prompts.mixture import Mixture, Prompt, components_of
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.storage import write_bytes

_OTHER_KINDS = frozenset({".json", ".npy", ".safetensors", ".pt", ".bin", ".nemo"})
_SEEDED = ".sordino-seeded"
_TRASH = ".trash"
# A file that was changed later than this may be half-copied, and is read again.
_SETTLED_SECONDS = 2.0


@dataclass(frozen=True)
class Entry:
    """A soft prompt or a mixture of the library, as its header describes it. A broken file has `error` (one line) and no sizes.

    components: of a mixture, whose n_tokens is the longest component's; 0 for a soft prompt. parts: what they say about themselves.
    stamp: changes when the file does.
    """

    name: str
    path: Path
    n_tokens: int = 0
    d_model: int = 0
    metadata: Metadata = field(default_factory=Metadata)
    format: str = ""
    error: str = ""
    components: int = 0
    parts: tuple[Metadata, ...] = ()
    stamp: Stamp = ()


class Library:
    """Soft prompts in one or several folders; new ones are written to the first. Owns a cache of headers in memory."""

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise BadInput("a library needs a folder", where="--library")
        # Each once: the same folder twice would list everything twice.
        self.folders = tuple(dict.fromkeys(Path(os.path.expanduser(folder)).absolute() for folder in folders))
        self._peeked: dict[tuple[Path, Stamp], formats.Peek | str] = {}

    def scan(self) -> list[Entry]:
        """All entries, by folder and name. Reads the headers of files that are new or changed, never a tensor.

        Never raises because of a file: a broken or half-copied one is an entry with an error, and is read again when it was
        changed; one that vanishes meanwhile is left out.
        """
        found = [(folder, item) for folder in self.folders for item in find(folder)]
        names = unique_names([(folder, item.label) for folder, item in found])
        peeked: dict[tuple[Path, Stamp], formats.Peek | str] = {}
        entries: list[Entry] = []
        for name, (_, item) in zip(names, found, strict=True):
            key = (item.path, item.stamp)
            peek = self._peeked.get(key)
            if peek is None:
                began = time.time()
                try:
                    peek = formats.peek(item.path)
                except (SordinoError, OSError) as error:
                    if not os.path.lexists(item.path):
                        continue
                    peek = _reason(error, item.path)
                    if _may_pass(error) or abs(began - changed_at(item.stamp)) < _SETTLED_SECONDS:
                        entries.append(Entry(name, item.path, error=peek, stamp=item.stamp))
                        continue
            peeked[key] = peek
            entries.append(_entry(name, item.path, item.stamp, peek))
        # Replaced whole: a scan in another thread sees the old headers or the new, and vanished files are forgotten.
        self._peeked = peeked
        return entries

    def read_soft_prompts(self) -> tuple[dict[str, SoftPrompt], list[str]]:
        """Every soft prompt that can be read, by name, and why others cannot; mixtures are left out."""
        found: dict[str, SoftPrompt] = {}
        broken = []
        for entry in self.scan():
            if entry.components:
                continue
            try:
                found[entry.name] = formats.read(entry.path)
            except SordinoError as error:
                broken.append(error.message)
        return found, broken

    def missing_folders(self) -> list[Path]:
        """Folders that are not there: a typing error, or a drive that is not mounted."""
        return [folder for folder in self.folders if not os.path.isdir(folder)]

    def other_files(self) -> list[Path]:
        """Files that may be soft prompts of another kind: not entries until they are installed."""
        return [
            Path(item.path)
            for folder in self.folders
            for item in listed(folder)
            if Path(item.name).suffix.lower() in _OTHER_KINDS and item.is_file()
        ]

    def entry(self, name: str) -> Entry:
        """The entry with this name; the file name itself (`v (1).zip`) is as good. Raises NotInLibrary."""
        entries, wanted = self.scan(), unicodedata.normalize("NFC", name)
        called = [(entry.name, entry.path.name, entry.path.stem) for entry in entries]
        for spelling in range(3):
            for entry, names in zip(entries, called, strict=True):
                if unicodedata.normalize("NFC", names[spelling]) == wanted:
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
        """The file or folder that is meant: a soft prompt at that path, or the entry with that name.

        A folder that is no soft prompt does not hide an entry of its name. Raises NotInLibrary, or SoftPromptFileError
        for what can only be a path.
        """
        # os.path, not Path: these answer False to what no file can be called, where Path raises.
        text = os.path.expanduser(name_or_path)
        path = Path(text)
        if os.path.isfile(text) or is_prompt_folder(path):
            return path
        if path.name == name_or_path:
            return self.entry(name_or_path).path
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

    def add(self, prompt: Prompt, *, name: str, replace: bool = False) -> Entry:
        """Write a native zip, NAME.mix.zip for a mixture, into the first folder, atomically.

        A file that says the same already is left as it is. Raises BadInput for a name that cannot be a file's everywhere, NameTaken
        for one that another soft prompt has (unless `replace`), StorageError where the disk refuses.
        """
        name = checked_name(name)
        prompt = prompt if prompt.metadata.name else prompt.with_metadata(name=name)
        endings = (MIXTURE_ENDING, ".zip") if isinstance(prompt, Mixture) else (".zip", MIXTURE_ENDING)
        target, other = (self._place_for(name + ending) for ending in endings)
        if target.exists():
            there = _read_if_good(target)
            if there is not None and _same(there, prompt):
                return self._entry_at(target)
            if target.is_dir():
                raise BadInput(
                    "a folder has this name", where=target, do="`sordino remove` it first, or choose another --name"
                )
        if not replace and (target.exists() or other.exists()):
            raise NameTaken(
                "another soft prompt has this name",
                where=name,
                do="--replace puts this one in its place, --name gives it another name",
            )
        _make_folder(self.folders[0])
        try:
            _write(prompt, target, replace=replace)
        except BadInput:
            if replace or not target.exists():
                raise
            # Somebody took the name meanwhile: another server, or another request.
            return self.add(prompt, name=name)
        if other.exists():
            # Both would be called so; what was replaced lies in the trash.
            with suppress(NotInLibrary):
                self.remove(self._entry_at(other))
        return self._entry_at(target)

    def twin(self, prompt: Prompt) -> Entry | None:
        """An entry with the same content hash, whatever its name, or None. Reads the tensors of the entries of that shape."""
        components = len(prompt.components) if isinstance(prompt, Mixture) else 0
        for entry in self.scan():
            if (entry.n_tokens, entry.d_model, entry.components) == (prompt.n_tokens, prompt.d_model, components):
                other = _read_if_good(entry.path)
                if other is not None and other.content_hash == prompt.content_hash:
                    return entry
        return None

    def remove(self, which: str | Entry) -> Path:
        """Move an entry (or the one of this name) into the hidden `.trash` of its folder. Returns where it lies now.

        Raises NotInLibrary, or StorageError where the disk refuses: the file is then where it was.
        """
        entry = self.entry(which) if isinstance(which, str) else which
        folder = next(folder for folder in self.folders if folder in entry.path.parents)
        # A folder in a folder is one entry: the outer one goes.
        top = folder / entry.path.relative_to(folder).parts[0]
        trash = folder / _TRASH
        _make_folder(trash)
        stem = without_ending(top.name)
        place = trash / top.name
        try:
            while not _moved(top, place):
                place = trash / f"{stem}-{secrets.token_hex(4)}{top.name.removeprefix(stem)}"
        except OSError as error:
            if not os.path.lexists(top):
                raise NotInLibrary("the file is gone: somebody else took it away", where=entry.name) from error
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
    """The library in these folders, else in those of SORDINO_LIBRARY, else the default one, made and seeded once.

    A folder that was named and is not there is an empty one; `missing_folders` tells.
    """
    if not folders and not os.environ.get("SORDINO_LIBRARY"):
        with suppress(StorageError):
            # A read-only home has no library of its own; commands that read other files must work all the same.
            _make_folder(default_folder(), parents=True)
            seed(default_folder())
    return Library(folders or default_folders())


def seed(folder: Path) -> list[Path]:
    """Put the packaged soft prompts into an empty library, once: what the user removes does not come back.

    One that was interrupted goes on. Returns what was written: nothing where the library holds anything else or was seeded
    before. Raises StorageError.
    """
    prompts, mark = _packaged(), folder / _SEEDED
    try:
        # Names, while the files are being put in place; empty when they are.
        if not mark.read_bytes():
            return []
    except FileNotFoundError:
        if listed(folder):
            return []
    except OSError:
        return []
    if not prompts:
        return []
    _make_folder(folder, parents=True)
    write_bytes(mark, "\n".join(item.name for item in prompts).encode())
    missing = [item for item in prompts if not os.path.lexists(folder / item.name)]
    for item in missing:
        write_bytes(folder / item.name, item.read_bytes())
    write_bytes(mark, b"")
    return [folder / item.name for item in missing]


def add_packaged(library: Library) -> list[Entry]:
    """The packaged soft prompts into a library, whatever it holds; what has one of their names stays. Raises StorageError."""
    folder = library.folders[0]
    _make_folder(folder, parents=True)
    added = []
    for item in _packaged():
        if not os.path.lexists(folder / item.name):
            write_bytes(folder / item.name, item.read_bytes())
            added.append(library.entry(Path(item.name).stem))
    return added


def _packaged() -> list[Traversable]:
    folder = resources.files("sordino").joinpath("data", "prompts")
    return [item for item in folder.iterdir() if item.name.endswith(".zip")] if folder.is_dir() else []


def edit(path: Path, changes: Mapping[str, Any]) -> Prompt:
    """Replace metadata fields of a native zip or a mixture, atomically; the matrices stay as they are. Returns what is there now.

    Raises BadInput for a file that is neither (the others cannot hold the fields), StorageError where the disk refuses: the old
    file is then intact.
    """
    prompt = formats.read_any(path).with_metadata(**changes)
    if not path.is_file() or formats.detect(path) not in ("kobold", "mixture"):
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
    _write(prompt, path, replace=True)
    return prompt


def _write(prompt: Prompt, path: Path, *, replace: bool) -> None:
    if isinstance(prompt, Mixture):
        formats.write_mixture(prompt, path, force=replace)
    else:
        # Its warnings are about other programs; here the file says all that the soft prompt does.
        formats.write(prompt, path, force=replace)


def _same(one: Prompt, other: Prompt) -> bool:
    """Whether their files would be the same bytes."""
    if one.content_hash != other.content_hash or one.metadata != other.metadata:
        return False
    pairs = zip(components_of(one), components_of(other), strict=True)
    return all(
        first is not None and second is not None and first.metadata == second.metadata for first, second in pairs
    )


def _read_if_good(path: Path) -> Prompt | None:
    try:
        return formats.read_any(path)
    except (SordinoError, OSError):
        return None


def _entry(name: str, path: Path, stamp: Stamp, peek: formats.Peek | str) -> Entry:
    """peek: the header, or why it cannot be read."""
    if isinstance(peek, str):
        return Entry(name, path, error=peek, stamp=stamp)
    sizes, of_mixture = (peek.n_tokens, peek.d_model), (peek.components, peek.parts)
    return Entry(name, path, *sizes, peek.metadata, peek.format, "", *of_mixture, stamp)


def _may_pass(error: SordinoError | OSError) -> bool:
    """Whether the disk refused, not the content: a drive that comes back, a file that another program lets go."""
    cause = error if isinstance(error, OSError) else error.__cause__
    # Libraries that unpack raise an OSError of no number for what they cannot read.
    return isinstance(cause, OSError) and cause.errno is not None


def _moved(source: Path, target: Path) -> bool:
    """Move a file or a folder, never over anything: False where the name is taken. Raises OSError."""
    if source.is_dir() and not source.is_symlink():
        try:
            # Replaces no folder that holds anything, and no file.
            os.rename(source, target)
        except OSError:
            if not os.path.lexists(target) or not os.path.lexists(source):
                raise
            return False
        return True
    try:
        # The name is taken in one step, and then filled.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    try:
        os.replace(source, target)
    except OSError:
        target.unlink()
        raise
    return True


def _make_folder(folder: Path, *, parents: bool = False) -> None:
    try:
        folder.mkdir(parents=parents, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder could not be made ({error.strerror})", where=folder) from error


def _reason(error: Exception, path: Path) -> str:
    """The error on one line, without the path that the entry says already."""
    return " ".join(str(error).split()).removeprefix(f"{' '.join(str(path).split())}: ")
