"""NVIDIA NeMo's `.nemo`: a tar, possibly gzipped, with the configuration and the weights of a prompt-learning model.

Only virtual tokens are read, which torch saved in model_weights.ckpt: `prompt_table.TASK.prompt_embeddings.weight`.
Source: NeMo 1.23, nlp/modules/common/prompt_table.py and core/connectors/save_restore_connector.py.
"""

from __future__ import annotations

import tarfile

from sordino.errors import SoftPromptFileError
from sordino.formats import torch_files
from sordino.formats.choice import PEFT_KEY, Named
from sordino.formats.sources import Files, Readable, Slice, SourceFile
from sordino.formats.unpack import GZIP, Unpacked
from sordino.formats.zips import check_ratio

_WEIGHTS = "model_weights.ckpt"
_GZIP_MAGIC, _TAR_MAGIC, _TAR_MAGIC_AT = b"\x1f\x8b", b"ustar", 257
# Whole models that are saved in parts have thousands of members.
_MAX_MEMBERS, _MAX_READ = 100, 1 << 20


def looks_like_one(source: Readable) -> bool:
    """Whether the first bytes are those of a tar or of gzip."""
    if source.size < 512:
        return source.size > 18 and source.read_at(0, 2) == _GZIP_MAGIC
    head = source.read_at(0, 512)
    return head.startswith(_GZIP_MAGIC) or head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC)


def read(source: Readable, files: Files) -> list[Named]:
    """The tables of virtual tokens in it. Raises SoftPromptFileError."""
    if source.read_at(0, 2) == _GZIP_MAGIC:
        # The last four bytes are the size, modulo 4 GiB.
        size = int.from_bytes(source.read_at(source.size - 4, 4), "little")
        check_ratio(size, files, source.where)
        source = Unpacked(source, GZIP, size, files)
        source.verify()
    found = [item for item in torch_files.read(_weights(source), files) if item[0].endswith(f"{PEFT_KEY}.weight")]
    if not found:
        raise SoftPromptFileError(
            "the archive holds no virtual tokens",
            where=source.where,
            expected=f"prompt_table.TASK.{PEFT_KEY}.weight in {_WEIGHTS}",
            do="for a model that still has its prompt encoder, save the encoder's output with torch.save",
        )
    return found


def _weights(source: Readable) -> Slice:
    names: list[str] = []
    try:
        with tarfile.TarFile(fileobj=SourceFile(source, _MAX_READ)) as archive:
            while len(names) < _MAX_MEMBERS and (member := archive.next()):
                if member.isreg() and member.name.removeprefix("./") == _WEIGHTS:
                    return Slice(source, member.offset_data, member.size, f"{source.where}: {_WEIGHTS}")
                names.append(member.name[:40])
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise SoftPromptFileError("not a whole tar", where=source.where, got=error) from error
    raise SoftPromptFileError(
        f"not a soft prompt: the archive has no {_WEIGHTS}",
        where=source.where,
        got=", ".join(names[:5]) or "nothing",
        do="unpack it and read the soft prompt in it",
    )
