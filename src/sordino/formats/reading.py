"""From a path to a soft prompt or a mixture: what kind of file it is, by its content, and what it holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from sordino.errors import SoftPromptFileError
from sordino.formats import kobold, meta, mixtures, mkultra, npy, peft, safetensors, torch_files
from sordino.formats.choice import Named, choose, only
from sordino.formats.json_text import parse
from sordino.formats.opened import Opened
from sordino.formats.sources import FileSource, Source
from sordino.formats.tensors import load, shape_of
from sordino.formats.zips import Archive
from sordino.prompts.mixture import Mixture, Prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

FORMATS: tuple[str, ...] = ("kobold", "peft", "mkultra", "npy", "safetensors", "torch")

_Open = Callable[[int | None], Opened]


@dataclass(frozen=True)
class _Found:
    """A file whose kind is known. open: given an index, reads the headers of a soft prompt. mixture: the archive of one."""

    format: str
    open: _Open
    mixture: Archive | None = None


@dataclass(frozen=True)
class Peek:
    """What the headers of a soft prompt file say. size: bytes of the file, or of the files that were opened.

    mtime: seconds since 1970, of the newest of them. The numbers themselves were neither read nor checked. components: of a
    mixture, whose n_tokens is the longest component's; 0 for a soft prompt. parts: what its components say about themselves.
    """

    format: str
    n_tokens: int
    d_model: int
    metadata: Metadata
    size: int
    mtime: float
    components: int = 0
    parts: tuple[Metadata, ...] = ()


def detect(path: Path) -> str:
    """The format, one of FORMATS or "mixture", by content. Raises SoftPromptFileError where it is none of them."""
    with _Files() as files:
        return _identify(Path(path), files).format


def peek(path: Path) -> Peek:
    """What the headers say; the tensor is not loaded and no hash is computed.

    Raises SoftPromptFileError for a file that the headers show to be broken.
    """
    path = Path(path)
    with _Files() as files:
        found = _identify(path, files)
        if found.mixture is not None:
            mixture = mixtures.open_mixture(found.mixture)
            metadata = meta.of_width(mixture.described.metadata, path, mixture.shape[1])
            parts = tuple(component.metadata or Metadata() for component in mixture.components)
            return Peek(found.format, *mixture.shape, metadata, files.size, files.mtime, len(parts), parts)
        opened = found.open(None)
        n_tokens, d_model = shape_of(opened.tensor)
        metadata = _metadata(opened, path, d_model)
        return Peek(found.format, n_tokens, d_model, metadata, files.size, files.mtime)


def read(path: Path, *, index: int | None = None) -> SoftPrompt:
    """The soft prompt in a file or folder of any known format. index: which one, where a file holds several.

    A file that says nothing of itself gets its name from its file name. Raises SoftPromptFileError, also for a mixture.
    """
    with _Files() as files:
        return _soft_prompt(_identify(Path(path), files), Path(path), index)


def read_any(path: Path, *, index: int | None = None) -> Prompt:
    """As `read`, and a mixture where the file holds one."""
    path = Path(path)
    with _Files() as files:
        found = _identify(path, files)
        return _soft_prompt(found, path, index) if found.mixture is None else _mixture(found.mixture, path, index)


def _soft_prompt(found: _Found, path: Path, index: int | None) -> SoftPrompt:
    opened = found.open(index)
    matrix_PD = load(opened.tensor)
    prompt = SoftPrompt(matrix_PD, _metadata(opened, path, matrix_PD.shape[1]))
    if opened.content_hash and prompt.content_hash != opened.content_hash:
        raise mixtures.changed(path, "the matrix", "tensor_sha256", opened.content_hash, prompt.content_hash)
    return prompt


def _mixture(archive: Archive, path: Path, index: int | None) -> Mixture:
    only(index, str(path))
    opened = mixtures.open_mixture(archive)
    meta.of_width(opened.described.metadata, path, opened.shape[1])
    return mixtures.read(opened, str(path))


def other_members(path: Path) -> list[str]:
    """What a native zip holds beside its two members, by name. Raises SoftPromptFileError."""
    with _Files() as files:
        source = files.open(path)
        names = [member.name for member in Archive(source, disk_size=source.size).members]
    return [name for name in names if name.rpartition("/")[2] not in (kobold.TENSOR, kobold.META)]


class _Files(ExitStack):
    """The files that were opened to read one soft prompt; closed together."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.mtime = 0, 0.0

    def open(self, path: Path) -> FileSource:
        try:
            file = self.enter_context(path.open("rb", buffering=0))
        except OSError as error:
            raise SoftPromptFileError(f"cannot be read ({error.strerror})", where=path) from error
        status = os.fstat(file.fileno())
        self.size, self.mtime = self.size + status.st_size, max(self.mtime, status.st_mtime)
        return FileSource(file, str(path))


def _identify(path: Path, files: _Files) -> _Found:
    """The format of what lies at `path`, and the function that opens it, given an index."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        return _identify_folder(path, files)
    if not stat.S_ISREG(mode):
        # Opening a pipe would wait for ever.
        raise SoftPromptFileError("not a file", where=path)
    source = files.open(path)
    head = source.read_at(0, min(source.size, 64))
    if head.startswith(b"PK"):
        return _identify_zip(Archive(source, disk_size=source.size), source.size)
    if head.startswith(npy.MAGIC):
        return _Found("npy", lambda index: Opened(choose([("", npy.stored(source))], index, source.where)))
    if safetensors.looks_like_one(source):
        return _Found("safetensors", partial(_open_safetensors, source))
    if head.startswith(b"\x80"):
        return _Found("torch", lambda index: Opened(choose(torch_files.read_stream(source), index, source.where)))
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return _Found("mkultra", partial(mkultra.read, source))
    raise SoftPromptFileError(
        "not a soft prompt file",
        where=path,
        expected="a KoboldAI zip, a PEFT folder, mkultra's JSON, .npy, .safetensors or a file of torch.save",
        got="an empty file" if not source.size else f"bytes that begin with {head[:8]!r}",
    )


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError as error:
        raise SoftPromptFileError("no such file", where=path) from error
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the name.
        raise SoftPromptFileError("cannot be read", where=repr(str(path)), got=error) from error


def _identify_folder(path: Path, files: _Files) -> _Found:
    if os.path.isfile(path / peft.CONFIG):
        return _Found("peft", _single(path, lambda: peft.read(path, files.open, _read_torch)))
    try:
        members = kobold.folder_members(path, files.open)
    except OSError as error:
        raise SoftPromptFileError(f"cannot be read ({error.strerror})", where=path) from error
    return _Found("kobold", _single(path, lambda: kobold.read(members)))


def _identify_zip(archive: Archive, disk_size: int) -> _Found:
    if mixtures.is_mixture(archive):
        return _Found("mixture", partial(_refuse_mixture, archive), archive)
    found = kobold.unwrap(archive, disk_size=disk_size)
    if isinstance(found, Archive):
        return _Found("torch", lambda index: Opened(choose(torch_files.read_zip(found), index, archive.where)))
    return _Found("kobold", _single(archive.where, lambda: kobold.read(found)))


def _refuse_mixture(archive: Archive, index: int | None) -> NoReturn:
    count = len(mixtures.open_mixture(archive).components)
    raise SoftPromptFileError(
        "a mixture of soft prompts, where one soft prompt is needed",
        where=archive.where,
        got=f"{count} components",
        do="`sordino show` names them; each is a native zip in it, which `unzip` takes out",
    )


def _single(where: object, open_: Callable[[], Opened]) -> _Open:
    """For formats of one soft prompt: an index other than 0 is refused."""

    def with_index(index: int | None) -> Opened:
        only(index, str(where))
        return open_()

    return with_index


def _read_torch(source: Source) -> Sequence[Named]:
    if source.read_at(0, min(source.size, 2)) == b"PK":
        return torch_files.read_zip(Archive(source, disk_size=source.size))
    return torch_files.read_stream(source)


def _open_safetensors(source: Source, index: int | None) -> Opened:
    tensors, said = safetensors.read(source)
    tensor = choose(tensors, index, source.where)
    if "sordino" not in said:
        return Opened(tensor)
    where = f"{source.where}: __metadata__"
    described = meta.from_json(parse(said["sordino"].encode(), where), where)
    return Opened(tensor, described.metadata, described.content_hash)


def _metadata(opened: Opened, path: Path, d_model: int) -> Metadata:
    return (
        Metadata(name=path.absolute().stem)
        if opened.metadata is None
        else meta.of_width(opened.metadata, path, d_model)
    )
