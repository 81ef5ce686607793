"""A copy of a .gguf file whose vocabulary has soft prompts in it. Tensors are copied as they are, from the disk to the disk.

Three kinds of tensor grow by a row for each new token: the input embeddings, by the soft prompts' vectors; the output head, by
copies of the least likely token's row; its bias likewise. A head that was tied to the embeddings becomes a tensor of its own.

Embeddings in fewer than 8 bits become 16-bit floats: 4 bits would move the vectors by 9 % of their norm (LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sordino.baking.tokens import BakedPrompt, vectors, with_tokens
from sordino.errors import ModelError
from sordino.models.description import DescribedModel
from sordino.models.gguf_header import EMBEDDINGS
from sordino.storage import atomic_file

HEAD, HEAD_BIAS = "output.weight", "output.bias"
_TOKENS, _TYPES, _SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))
_TEMPLATE = "tokenizer.chat_template"
# llama.cpp reads tokens of this kind as markers, and does not write them out.
_CONTROL, _UNUSED = 3, 5
# Of a token that stands for no text.
_LOWEST_SCORE = -1000.0
_TILE_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Grown:
    """A tensor with more rows: of a gguf type, its rows as numpy arrays of `dtype`, together of `shape`."""

    kind: Any
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    tiles: Iterator[NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def tofile(self, file: BinaryIO) -> None:
        """What gguf's writer calls."""
        for tile in self.tiles:
            tile.tofile(file)


def bake_gguf(
    source: Path,
    target: Path,
    prompts: Sequence[BakedPrompt],
    *,
    silent: int,
    scale: float,
    model: DescribedModel,
    about: str,
) -> None:
    """scale: what llama.cpp multiplies an input embedding with (Gemma's sqrt(d)). about: a sentence for the metadata.

    Needs the size of the file, and of the embeddings once more, on the disk; memory for a tile. Raises ModelError for a file
    with other tensors of the vocabulary's size, StorageError.
    """
    from gguf import GGUFReader, GGUFWriter

    reader: Any = GGUFReader(source)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if "split.count" in fields and fields["split.count"].contents() > 1:
        raise ModelError(
            "one of several files of a model", where=source, do="join them with llama.cpp's gguf-split --merge"
        )
    tokens = [token for one in prompts for token in one.tokens]
    vectors_ND = vectors(prompts, scale)
    changed = _fields(fields, tokens, prompts, model=model, about=about)
    with atomic_file(target) as temporary:
        writer: Any = GGUFWriter(temporary, fields["general.architecture"].contents())
        _copy_fields(writer, fields, changed)
        tensors = list(_tensors(reader.tensors, vectors_ND, silent, where=source))
        for name, tensor in tensors:
            writer.add_tensor_info(name, tensor.shape, tensor.dtype, tensor.nbytes, tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tensors:
            writer.write_tensor_data(tensor)
        writer.close()


def reserved_ids(fields: Any) -> set[int]:
    """Ids of tokens that the file calls control or unused tokens, but for those that have a part in a text."""
    types = fields.get(_TYPES) or []
    named = {value for name, value in fields.items() if name.endswith("_token_id") and isinstance(value, int)}
    return {at for at, kind in enumerate(types) if kind in (_CONTROL, _UNUSED)} - named


def _fields(
    fields: Any, tokens: Sequence[str], prompts: Sequence[BakedPrompt], *, model: DescribedModel, about: str
) -> dict[str, Any]:
    """New values of fields by their names."""
    architecture = fields["general.architecture"].contents()
    count = len(fields[_TOKENS].data) + len(tokens)
    changed: dict[str, Any] = {_TOKENS: [*fields[_TOKENS].contents(), *tokens]}
    for name, value in ((_TYPES, _CONTROL), (_SCORES, _LOWEST_SCORE)):
        if name in fields:
            changed[name] = [*fields[name].contents(), *[value] * len(tokens)]
    if f"{architecture}.vocab_size" in fields:
        changed[f"{architecture}.vocab_size"] = count
    for name in fields:
        # Some models have a second template, for tools.
        if name == _TEMPLATE or name.startswith(f"{_TEMPLATE}."):
            changed[name] = with_tokens(fields[name].contents(), prompts, model)
    name = fields["general.name"].contents() if "general.name" in fields else ""
    changed["general.name"] = " + ".join(filter(None, [name, *(one.name for one in prompts)]))
    changed["general.description"] = about
    changed["general.base_model.0.name"] = model.id
    return changed


def _copy_fields(writer: Any, fields: Any, changed: dict[str, Any]) -> None:
    from gguf import GGUFValueType

    for name, field in fields.items():
        if name == "general.architecture":
            continue
        kind = field.types[0]
        within = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(name, changed.get(name) or field.contents(), kind, sub_type=within)
    for name in changed.keys() - fields.keys():
        writer.add_key_value(name, changed[name], GGUFValueType.STRING)
    if "general.base_model.count" not in fields:
        writer.add_key_value("general.base_model.count", 1, GGUFValueType.UINT32)


def _tensors(
    tensors: Sequence[Any], vectors_ND: NDArray[np.float32], silent: int, *, where: Path
) -> Iterator[tuple[str, Grown]]:
    """Those of the new file by name, in the order of the old. Raises ModelError."""
    by_name = {tensor.name: tensor for tensor in tensors}
    words, count = len(by_name[EMBEDDINGS].data), len(vectors_ND)
    for tensor in tensors:
        if tensor.name == EMBEDDINGS:
            yield EMBEDDINGS, _embeddings(tensor, vectors_ND)
        elif tensor.name in (HEAD, HEAD_BIAS):
            yield tensor.name, _with_copies(tensor, silent, count)
        elif words in tensor.shape.tolist():
            raise ModelError(
                "its tokens have more than input embeddings and a row of the output head, so none can be added",
                where=where,
                got=tensor.name,
                do="choose another base model",
            )
        else:
            yield tensor.name, _grown(tensor, tensor.data[:0])
    if HEAD not in by_name:
        yield HEAD, _with_copies(by_name[EMBEDDINGS], silent, count)


def _with_copies(tensor: Any, row: int, count: int) -> Grown:
    return _grown(tensor, np.repeat(tensor.data[row : row + 1], count, axis=0))


def _grown(tensor: Any, added: NDArray[Any]) -> Grown:
    """With these rows at the end."""
    data = tensor.data
    tiles = (data[at : at + _TILE_ROWS] for at in range(0, len(data), _TILE_ROWS))
    shape = (len(data) + len(added), *data.shape[1:])
    return Grown(tensor.tensor_type, data.dtype, shape, chain(tiles, [added]))


def _embeddings(tensor: Any, vectors_ND: NDArray[np.float32]) -> Grown:
    """With the vectors at the end, in the tensor's own numbers, or in 16-bit floats where those are too coarse."""
    from gguf import GGMLQuantizationType, dequantize, quantize

    fine = ("F32", "F16", "BF16", "Q8_0")
    if tensor.tensor_type.name in fine:
        return _grown(tensor, quantize(vectors_ND, tensor.tensor_type))

    def tiles() -> Iterator[NDArray[Any]]:
        for at in range(0, len(tensor.data), _TILE_ROWS):
            yield dequantize(tensor.data[at : at + _TILE_ROWS], tensor.tensor_type).astype(np.float16)
        yield vectors_ND.astype(np.float16)

    shape = (len(tensor.data) + len(vectors_ND), vectors_ND.shape[1])
    return Grown(GGMLQuantizationType.F16, np.dtype(np.float16), shape, tiles())
