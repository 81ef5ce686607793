"""mkultra's JSON: metadata, and a pickled tensor in base64. Read without unpickling; written without torch."""

from __future__ import annotations

import base64
import json
import re
import struct
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from sordino.errors import BadInput, SoftPromptFileError
from sordino.formats import meta, torch_files
from sordino.formats.choice import choose
from sordino.formats.json_text import MAX_JSON, check_room, parse
from sordino.formats.sources import CHUNK, Base64Source, Readable, Slice, chunks
from sordino.formats.tensors import Opened
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

# The bytes `"tensor": "` can only begin a value of that key: inside a JSON text, quotes have a backslash.
_TENSOR = re.compile(rb'"tensor"\s*:\s*"')
_BEFORE_TENSOR, _BEHIND_TENSOR = b', "tensor": "', b'"}'
_PLACEHOLDER = "@"
# Seconds since 1970; Python's dates end there.
_YEAR_9999 = 253402300799
# Every mkultra file has these.
_IDENTITY_KEYS = frozenset({"name", "description", "uuid", "epoch"})
# Those of them that are derived from the rest when a file is written.
_MADE_KEYS = frozenset({"uuid", "epoch"})


def read(source: Readable, index: int | None) -> Opened:
    """The soft prompt in a JSON file. The tensor's text, which may be large, is cut out before the JSON is parsed."""
    obj, text = _split(source)
    stated = obj.get("metadata", {})
    if not isinstance(stated, dict):
        raise SoftPromptFileError("a value of the wrong kind", where=f"{source.where}: metadata", expected="an object")
    tensors = torch_files.read_stream(Base64Source(text, f"{source.where}: tensor"))
    opened = choose(tensors, index, source.where)
    if "sordino" in stated:
        described = meta.from_json(
            {key: value for key, value in stated.items() if key not in _MADE_KEYS}, f"{source.where}: metadata"
        )
        return replace(opened, metadata=described.metadata, content_hash=described.content_hash)
    return replace(opened, metadata=_metadata(stated, source.where))


def pieces(prompt: SoftPrompt) -> list[bytes]:
    """The bytes of a file that mkultra's SoftPrompt.from_file reads, with the `sordino` object beside its own keys.

    ASCII, as mkultra opens it in the platform's encoding. Raises BadInput.
    """
    stated = {key: value for key, value in parse(meta.to_bytes(prompt), "metadata").items() if key not in _MADE_KEYS}
    ours = {"name": stated.pop("name"), "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, prompt.content_hash))}
    epoch = _epoch(prompt.metadata.created)
    head = json.dumps({"metadata": ours | ({} if epoch is None else {"epoch": epoch}) | stated})[:-1]
    check_room(len(head) + len(_BEFORE_TENSOR) + len(_BEHIND_TENSOR), "mkultra's JSON, which is ASCII")
    if _TENSOR.search(head.encode("ascii")):
        raise BadInput("mkultra's JSON has room for one text called tensor", where="metadata", do="rename that key")
    tensor = base64.b64encode(b"".join(_pickled(prompt)))
    return [head.encode("ascii") + _BEFORE_TENSOR, tensor, _BEHIND_TENSOR]


def _split(source: Readable) -> tuple[dict[str, Any], Slice]:
    """The JSON object with a placeholder for the tensor, and the tensor's text."""
    head = source.read_at(0, min(source.size, MAX_JSON))
    match = _TENSOR.search(head)
    start = match.end() if match else 0
    end = _find_quote(source, start) if match else 0
    if start + source.size - end > MAX_JSON:
        raise SoftPromptFileError(
            "too large for mkultra's JSON",
            where=source.where,
            expected=f"at most {MAX_JSON} bytes besides the tensor",
            got=start + source.size - end,
        )
    obj = parse(
        head[:start] + _PLACEHOLDER.encode() * bool(match) + source.read_at(end, source.size - end), source.where
    )
    if not match or obj.get("tensor") != _PLACEHOLDER:
        raise SoftPromptFileError(
            "not a soft prompt: JSON, but not mkultra's",
            where=source.where,
            expected='keys "metadata" and "tensor"',
            got=", ".join(key[:40] for key in list(obj)[:5]) or "no keys",
            do="give the folder instead of a file in it" if "peft_type" in obj or "supported" in obj else "",
        )
    return obj, Slice(source, start, end - start)


def _find_quote(source: Readable, start: int) -> int:
    for number, piece in enumerate(chunks(Slice(source, start, source.size - start))):
        at = piece.find(b'"')
        if at >= 0:
            return start + number * CHUNK + at
    raise SoftPromptFileError("cut short: the tensor does not end", where=source.where, do="copy or download it again")


def _metadata(stated: dict[str, Any], where: str) -> Metadata:
    described = meta.from_json({key: stated.get(key) for key in ("name", "description")}, f"{where}: metadata").metadata
    created = ""
    epoch = stated.get("epoch")
    if isinstance(epoch, (int, float)) and 0 <= epoch <= _YEAR_9999:
        created = datetime.fromtimestamp(epoch, UTC).isoformat(timespec="seconds")
    # step, loss, and whatever its trainers noted.
    training = {key: value for key, value in stated.items() if key not in _IDENTITY_KEYS}
    return Metadata(name=described.name, description=described.description, created=created, training=training)


def _epoch(created: str) -> float | None:
    try:
        when = datetime.fromisoformat(created)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _pickled(prompt: SoftPrompt) -> list[bytes]:
    """The bytes of pickle.dumps(tensor) for a float32 tensor, made without torch."""
    stream = b"".join(_storage_stream(prompt))
    rows, columns = struct.pack("<i", prompt.n_tokens), struct.pack("<i", prompt.d_model)
    return [
        b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n",
        b"B" + struct.pack("<I", len(stream)),
        stream,
        # The one argument; offset 0; shape; strides; needs no gradient; no hooks.
        b"\x85RK\x00J" + rows + b"J" + columns + b"\x86J" + columns + b"K\x01\x86\x89ccollections\nOrderedDict\n)RtR.",
    ]


def _storage_stream(prompt: SoftPrompt) -> list[bytes]:
    """A storage as torch.save before version 1.6 wrote it: five pickles, the count, the numbers."""
    count = prompt.n_tokens * prompt.d_model
    magic = torch_files.MAGIC.to_bytes(10, "little")
    protocol = struct.pack("<H", torch_files.PROTOCOL)
    sizes = b"}(" + _text("short") + b"K\x02" + _text("int") + b"K\x04" + _text("long") + b"K\x04u"
    system = (
        b"}(" + _text("protocol_version") + b"M" + protocol + _text("little_endian") + b"\x88" + _text("type_sizes")
    )
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu")
    return [
        b"\x80\x02\x8a\x0a" + magic + b".",
        b"\x80\x02M" + protocol + b".",
        b"\x80\x02" + system + sizes + b"u.",
        b"\x80\x02" + storage + b"J" + struct.pack("<i", count) + b"NtQ.",
        b"\x80\x02]" + _text("0") + b"a.",
        struct.pack("<q", count),
        prompt.matrix.astype("<f4", copy=False).tobytes(),
    ]


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode("ascii")
