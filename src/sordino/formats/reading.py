"""Read a soft prompt or a mixture from a path. The format is detected by content."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from sordino.errors import SoftPromptFileError, readable
from sordino.formats import (
    folders,
    kobold,
    kv_prompts,
    meta,
    mixtures,
    mkultra,
    nemo,
    npy,
    peft,
    safetensors,
    torch_files,
)
from sordino.formats.choice import choose, only
from sordino.formats.json_text import parse
from sordino.formats.kv_prompts import OpenedKV
from sordino.formats.sources import Files, Readable
from sordino.formats.tensors import Opened
from sordino.formats.zips import Archive
from sordino.prompts.fit import Stated
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

_log = logging.getLogger("sordino.formats")

FORMATS: tuple[str, ...] = ("kobold", "peft", "mkultra", "npy", "safetensors", "torch", "nemo", "kv")

_Open = Callable[[int | None], Opened | OpenedKV]


@dataclass(frozen=True)
class _Found:
    """A file of known format. open: reads the headers of the prompt of an index. mixture: the archive, if it holds one."""

    format: str
    open: _Open
    mixture: Archive | None = None


@dataclass(frozen=True)
class Peek:
    """The headers of a soft prompt file; its numbers were neither read nor checked. size: bytes of the files that were opened.

    mtime: seconds since 1970, of the newest of them. d_model: 0 where a KV prompt does not say it. components: their number in a
    mixture, whose n_tokens is the longest component's; 0 for one prompt. parts: what each component says, or the one prompt.
    """

    format: str
    kind: str
    n_tokens: int
    d_model: int
    metadata: Metadata
    size: int
    mtime: float
    parts: tuple[Stated, ...]
    components: int = 0


def detect(path: Path) -> str:
    """The format, one of FORMATS or "mixture", by content. Raises SoftPromptFileError where it is none of them."""
    with Files() as files:
        return _identify(Path(path), files).format


def peek(path: Path) -> Peek:
    """The headers of a file; the tensor is not loaded and no hash is computed.

    Raises SoftPromptFileError where the headers are broken.
    """
    path = Path(path)
    with Files() as files:
        return _peeked(_identify(path, files), path, files)


def peek_zip(source: Readable, files: Files, path: Path) -> Peek:
    """As `peek`, of a zip that is no file of this machine. path: what it is called. files: with its size."""
    return _peeked(_identify_zip(Archive(source, files), path), path, files)


def _peeked(found: _Found, path: Path, files: Files) -> Peek:
    if found.mixture is not None:
        mixture = mixtures.open_mixture(found.mixture)
        metadata = meta.of_width(mixture.described.metadata, path, mixture.shape[1])
        parts = tuple(_stated(one, one.metadata or Metadata()) for one in mixture.components)
        sizes = (*mixture.shape, metadata, files.size, files.mtime)
        return Peek(found.format, Mixture.kind, *sizes, parts, len(parts))
    opened = found.open(None)
    kind = KVPrompt.kind if isinstance(opened, OpenedKV) else SoftPrompt.kind
    stated = _stated(opened, opened.metadata if isinstance(opened, OpenedKV) else _metadata(opened, path))
    sizes = (opened.n_tokens, stated.d_model, stated.metadata, files.size, files.mtime)
    return Peek(found.format, kind, *sizes, (stated,))


def _stated(opened: Opened | OpenedKV, metadata: Metadata) -> Stated:
    return Stated(metadata, opened.d_model, opened.shape if isinstance(opened, OpenedKV) else None)


def read(path: Path, *, index: int | None = None, warn: Callable[[str], None] = _log.warning) -> SoftPrompt:
    """The embedding prompt in a file or folder of any known format. index: which one, where a file holds several.

    A file without metadata gets its file name as its name. warn: called with what was left out of the result. Raises
    SoftPromptFileError, also for a KV prompt and a mixture.
    """
    path = Path(path)
    with Files() as files:
        opened = _identify(path, files).open(index)
        if isinstance(opened, OpenedKV):
            raise SoftPromptFileError(
                "a KV prompt, where an embedding prompt is needed",
                where=path,
                got=f"keys and values of {opened.shape}, which have no matrix",
            )
        return _embedding_prompt(opened, path, warn)


def read_single(path: Path, *, index: int | None = None, warn: Callable[[str], None] = _log.warning) -> SinglePrompt:
    """As `read`, and a KV prompt where the file holds one."""
    path = Path(path)
    with Files() as files:
        return _single_prompt(_identify(path, files).open(index), path, warn)


def read_any(path: Path, *, index: int | None = None, warn: Callable[[str], None] = _log.warning) -> StoredPrompt:
    """As `read_single`, and a mixture where the file holds one."""
    path = Path(path)
    with Files() as files:
        found = _identify(path, files)
        if found.mixture is not None:
            return _mixture(found.mixture, path, index)
        return _single_prompt(found.open(index), path, warn)


def _single_prompt(opened: Opened | OpenedKV, path: Path, warn: Callable[[str], None]) -> SinglePrompt:
    return kv_prompts.read(opened, str(path)) if isinstance(opened, OpenedKV) else _embedding_prompt(opened, path, warn)


def _embedding_prompt(opened: Opened, path: Path, warn: Callable[[str], None]) -> SoftPrompt:
    prompt = kobold.prompt_of(opened, _metadata(opened, path), path)
    if opened.warning:
        warn(opened.warning)
    return prompt


def _mixture(archive: Archive, path: Path, index: int | None) -> Mixture:
    only(index, str(path))
    opened = mixtures.open_mixture(archive)
    meta.of_width(opened.described.metadata, path, opened.shape[1])
    return mixtures.read(opened, str(path))


def other_members(path: Path) -> list[str]:
    """The names of a native zip's members besides its own two. Raises SoftPromptFileError."""
    with Files() as files:
        source = files.open(path)
        names = [member.filename for member in Archive(source, files).members]
    return [name for name in names if name.rpartition("/")[2] not in (folders.TENSOR, folders.META)]


def _identify(path: Path, files: Files) -> _Found:
    """The format of the file or folder at `path`, and the function that opens it, given an index."""
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        return _identify_folder(path, files)
    if not stat.S_ISREG(mode):
        # Opening a pipe would block.
        raise SoftPromptFileError("not a file", where=path)
    if path.name in (folders.WEIGHTS, folders.OLD_WEIGHTS) and os.path.isfile(path.with_name(folders.CONFIG)):
        # The configuration beside the vectors says what they are.
        return _identify_folder(path.parent, files)
    source = files.open(path)
    head = source.read_at(0, min(source.size, 64))
    if head.startswith(b"PK"):
        return _identify_zip(Archive(source, files), path)
    if head.startswith(npy.MAGIC):
        return _Found("npy", lambda index: choose([("", npy.stored(source))], index, source.where))
    if safetensors.looks_like_one(source):
        return _Found("safetensors", partial(_open_safetensors, source))
    if head.startswith(b"\x80"):
        return _Found("torch", lambda index: choose(torch_files.read(source, files), index, source.where))
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return _Found("mkultra", partial(mkultra.read, source))
    if nemo.looks_like_one(source):
        return _Found("nemo", lambda index: choose(nemo.read(source, files), index, source.where))
    raise SoftPromptFileError(
        "not a soft prompt file",
        where=path,
        expected="a KoboldAI zip, a PEFT folder, mkultra's JSON, .npy, .safetensors, .nemo or a file of torch.save",
        got="an empty file" if not source.size else f"a file that begins with {readable(head[:8])}",
    )


def _mode(path: Path) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError as error:
        raise SoftPromptFileError("no such file", where=path) from error
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the name.
        raise SoftPromptFileError("cannot be read", where=repr(str(path)), got=error) from error


def _identify_folder(path: Path, files: Files) -> _Found:
    try:
        members = folders.in_folder(path, files)
    except OSError as error:
        raise SoftPromptFileError(f"cannot be read ({error.strerror})", where=path) from error
    return _identify_members(members, path, files)


def _identify_zip(archive: Archive, path: Path) -> _Found:
    if mixtures.is_mixture(archive):
        return _Found("mixture", partial(_refuse_mixture, archive), archive)
    if kv_prompts.is_kv_prompt(archive):
        return _Found("kv", _single(path, lambda: kv_prompts.open_archive(archive)))
    found = folders.unwrap(archive)
    if isinstance(found, Archive):
        return _Found("torch", lambda index: choose(torch_files.read_zip(found), index, archive.where))
    return _identify_members(found, path, archive.files)


def _identify_members(members: folders.Members, path: Path, files: Files) -> _Found:
    if folders.TENSOR in members:
        return _Found("kobold", _single(path, lambda: kobold.read(members)))
    return _Found("peft", lambda index: peft.read(members, index, path, files))


def _refuse_mixture(archive: Archive, index: int | None) -> NoReturn:
    count = len(mixtures.open_mixture(archive).components)
    raise SoftPromptFileError(
        "a mixture of soft prompts, where one soft prompt is needed",
        where=archive.where,
        got=f"{count} components",
        do="`sordino show` names them; each is a file of its own in it, which `unzip` extracts",
    )


def _single(where: object, open_: Callable[[], Opened | OpenedKV]) -> _Open:
    """For formats of one soft prompt: refuses an index other than 0."""

    def with_index(index: int | None) -> Opened | OpenedKV:
        only(index, str(where))
        return open_()

    return with_index


def _open_safetensors(source: Readable, index: int | None) -> Opened:
    tensors, stated = safetensors.read(source)
    opened = choose(tensors, index, source.where)
    if "sordino" not in stated:
        return opened
    where = f"{source.where}: __metadata__"
    described = meta.from_json(parse(stated["sordino"].encode(), where), where)
    return replace(opened, metadata=described.metadata, content_hash=described.content_hash)


def _metadata(opened: Opened, path: Path) -> Metadata:
    d_model = opened.d_model
    if opened.metadata is None:
        return Metadata(name=path.absolute().stem)
    return meta.of_width(opened.metadata, path, d_model)
