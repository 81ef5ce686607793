"""The identity of a base model: a hash of its weights as they are stored, and of its tokenizer.

    fingerprint = SHA-256 of the canonical JSON {"tensors": [[name, [shape], sha256 of the stored bytes], ...], "tokenizer": sha256}

Tensors are sorted by name. The bytes are those of the source: a GGUF file is hashed as quantised, and its conversion inherits the
fingerprint, so that all programs that run the file agree. File names, and how tensors are divided among files, do not matter. For
the tokenizer see `_gguf_tokenizer` and `_folder_tokenizer`.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

from sordino.errors import ModelError
from sordino.models.cache import kept, sha256_of
from sordino.models.gguf_header import GgufHeader, TensorLocation, unreadable

_CHUNK_BYTES = 1 << 22
_MAX_SAFETENSORS_HEADER = 100_000_000
# Of two kinds the first is taken.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json")


def of_gguf(header: GgufHeader) -> str:
    """The fingerprint of a GGUF file. Reads the whole file."""
    return _fingerprint(_tensor_lines(header.path, header.tensors), _gguf_tokenizer(header))


def of_folder(folder: Path) -> str:
    """The fingerprint of a transformers folder with safetensors weights. Reads the whole folder; raises ModelError."""
    lines = [line for path in weight_files(folder) for line in _tensor_lines(path, safetensors_tensors(path))]
    try:
        tokenizer = _folder_tokenizer(folder)
    except (AttributeError, TypeError) as error:
        raise ModelError(
            "the tokenizer's files are broken", where=folder, got=error, do="fetch the model again"
        ) from error
    return _fingerprint(lines, tokenizer)


def cached(paths: Iterable[Path], compute: Callable[[], str]) -> str:
    """The result of `compute()`, kept in the cache until a file of `paths` changes its size or time stamp."""
    state = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(paths)]
    slot = hashlib.sha256(json.dumps([line[0] for line in state]).encode()).hexdigest()[:32]
    return str(kept(f"fingerprints/{slot}.json", state, compute))


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a transformers folder: safetensors, else pickles. Raises ModelError where one is missing."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _listed(folder, folder / f"{name}.index.json")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack"))
    raise ModelError(
        "no weights here",
        where=folder,
        expected=" or ".join(_WEIGHTS),
        got=", ".join(others[:3]),
        do="give a whole model folder or a .gguf file",
    )


def _listed(folder: Path, index: Path) -> list[Path]:
    """The files of an index, all of them there."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except OSError as error:
        raise unreadable(index, error) from error
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError("the list of weight files is broken", where=index, do="fetch the model again") from error
    missing = [name for name in names if not _inside(folder, name)]
    if missing or not names:
        raise ModelError(
            "weights are missing",
            where=folder,
            got=f"no {missing[0]} ({len(missing)} of {len(names)} files)" if missing else "an empty list of files",
            do="fetch the model again",
        )
    return [folder / name for name in names]


def _inside(folder: Path, name: object) -> bool:
    """Whether an index names an existing file of its own folder."""
    return isinstance(name, str) and Path(name).name == name and (folder / name).is_file()


def safetensors_tensors(path: Path) -> tuple[TensorLocation, ...]:
    """The positions of a safetensors file's tensors. Raises ModelError where the header is broken."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            if length > min(size - 8, _MAX_SAFETENSORS_HEADER):
                raise ValueError(f"a header of {length} bytes")
            table = json.loads(file.read(length))
        table.pop("__metadata__", None)
        tensors = tuple(_stored(name, entry, 8 + length) for name, entry in table.items())
        if any(not 0 <= tensor.offset <= tensor.offset + tensor.size <= size for tensor in tensors):
            raise ValueError(f"{size} bytes, which end before the tensors do")
        if sum(tensor.size for tensor in tensors) > size:
            raise ValueError("tensors that are larger together than the file")
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError("not a whole safetensors file", where=path, got=error, do="fetch it again") from error
    return tensors


def n_parameters(tensors: Iterable[TensorLocation]) -> int:
    return sum(prod(tensor.shape) for tensor in tensors)


def _stored(name: str, entry: Any, start: int) -> TensorLocation:
    begin, end = entry["data_offsets"]
    shape, size = tuple(int(n) for n in entry["shape"]), int(end) - int(begin)
    # The narrowest numbers of the format have four bits.
    if min(shape, default=0) < 0 or 2 * size < prod(shape):
        raise ValueError(f"{size} bytes for the shape {list(shape)[:8]} of {name[:80]!r}")
    return TensorLocation(name, shape, start + int(begin), size)


def _tensor_lines(path: Path, tensors: Iterable[TensorLocation]) -> list[tuple[str, list[int], str]]:
    with path.open("rb") as file:
        return [(tensor.name, list(tensor.shape), _hash_of(file, tensor)) for tensor in tensors]


def _hash_of(file: Any, tensor: TensorLocation) -> str:
    digest, left = hashlib.sha256(), tensor.size
    file.seek(tensor.offset)
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise ModelError("the file ends before its tensors do", where=file.name, do="fetch it again")
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _fingerprint(lines: list[tuple[str, list[int], str]], tokenizer: Any) -> str:
    return _hash_json({"tensors": sorted(lines), "tokenizer": _hash_json(tokenizer)})


def _hash_json(value: Any) -> str:
    """SHA-256 of canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _gguf_tokenizer(header: GgufHeader) -> dict[str, Any]:
    """All `tokenizer.ggml.*` fields: tokens, merges, scores, kinds, ids of special tokens. A chat template changes no token."""
    return {key: value for key, value in header.fields.items() if key.startswith("tokenizer.ggml.")}


def _folder_tokenizer(folder: Path) -> dict[str, Any]:
    """Vocabulary, merges and special tokens of tokenizer.json or of the older files, and the settings of special tokens."""
    found: dict[str, Any] = {"specials": _special_settings(folder / "tokenizer_config.json")}
    whole = folder / "tokenizer.json"
    if whole.is_file():
        table = json_object(whole)
        model = table.get("model") or {}
        found["vocab"] = model.get("vocab")
        # Older files spell a merge "a b", newer ones ["a", "b"].
        found["merges"] = [
            merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or []
        ]
        found["added"] = [
            [token.get("id"), token.get("content"), token.get("special")] for token in table.get("added_tokens") or []
        ]
    else:
        found["files"] = {name: sha256_of(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()}
    return found


def _special_settings(path: Path) -> dict[str, Any]:
    settings = json_object(path) if path.is_file() else {}
    found: dict[str, Any] = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token", "add_bos_token", "add_eos_token"):
        value = settings.get(key)
        found[key] = value.get("content") if isinstance(value, dict) else value
    return found


def json_object(path: Path) -> dict[str, Any]:
    """The content of a model's JSON file. Raises ModelError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError("cannot be read as a JSON object", where=path, do="fetch the model again")
    return value
