"""Tensors that torch.save or pickle wrote, read without torch.

Three layouts, all around pickles: a zip with data.pkl and a member per storage (torch 1.6 and later); a stream of
pickles followed by the storages (before); a bare pickle of a tensor, whose storage is such a stream in a string (what
mkultra writes). Source: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from sordino.errors import SoftPromptFileError
from sordino.formats.meta_keys import is_size
from sordino.formats.pickles import Budget, Constructor, Global, Module, StateDict, Unpickler, Value
from sordino.formats.sources import Cursor, Files, Readable, Slice, read_all
from sordino.formats.tensors import TensorView
from sordino.formats.zips import Archive

# torch's storage classes: the name of the type, bytes per element. Only floats become soft prompts, but a file may hold other
# tensors as well.
STORAGES = {
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8),
    "ComplexDoubleStorage": ("complex128", 16),
}
# Modules that hold vectors and compute nothing from them, and those that hold other modules.
_MODULES = {
    ("torch.nn.modules.sparse", "Embedding"),
    *(("torch.nn.modules.container", name) for name in ("ModuleList", "ModuleDict", "ParameterList", "ParameterDict")),
}
# How files of torch, and archives that hold them, are called.
PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".nemo")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# A stream may hold a pickle that holds a stream: mkultra's tensors need two levels.
_MAX_DEPTH = 3
_MAX_TENSORS = 10_000


@dataclass
class Storage:
    """A sequence of numbers. In a stream they follow the tensors that refer to them; `source` is set then."""

    dtype: str
    count: int
    item_size: int
    source: Readable | None = None


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, as a pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(source: Readable, files: Files) -> list[tuple[str, TensorView]]:
    """The named tensors of a file of any layout. Raises SoftPromptFileError."""
    if source.read_at(0, min(source.size, 2)) == b"PK":
        return read_zip(Archive(source, files))
    return read_stream(source)


def read_zip(archive: Archive) -> list[tuple[str, TensorView]]:
    """The named tensors of a file that torch.save wrote as a zip. Raises SoftPromptFileError."""
    members = {member.filename: member for member in archive.members}
    pickle = next(name for name in members if is_pickle_member(name))
    root = pickle.removesuffix("data.pkl")
    if f"{root}byteorder" in members:
        order = read_all(archive.open(members[f"{root}byteorder"]), limit=16)
        if order.strip() != b"little":
            raise SoftPromptFileError(
                "written on a big-endian machine", where=archive.where, expected="little", got=order
            )

    def source_of(key: str) -> Readable:
        if f"{root}data/{key}" not in members:
            raise SoftPromptFileError("a tensor's data is missing", where=archive.where, expected=f"{root}data/{key}")
        return archive.open(members[f"{root}data/{key}"])

    content = archive.open(members[pickle])
    content.verify()
    return tensors_in(_Reader(Budget()).run(Cursor(content), source_of))


def is_pickle_member(name: str) -> bool:
    """Whether a zip with this member is torch's."""
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def read_stream(source: Readable) -> list[tuple[str, TensorView]]:
    """The named tensors of a bare pickle, or of a file of torch before 1.6. Raises SoftPromptFileError."""
    return tensors_in(_Reader(Budget()).run_stream(source))


def tensors_in(value: Value) -> list[tuple[str, TensorView]]:
    """All tensors in dictionaries and lists, named as in "model.wte.0". A pickle's lists can hold themselves."""
    found: list[tuple[str, TensorView]] = []
    seen: set[int] = set()
    pending = [iter([("", value)])]
    while pending:
        name, item = next(pending[-1], (None, None))
        if name is None:
            pending.pop()
        elif isinstance(item, Tensor):
            found.append((name, _stored(item)))
            if len(found) > _MAX_TENSORS:
                raise SoftPromptFileError("too many tensors", where=found[0][1].source.where, expected=_MAX_TENSORS)
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending.append(_named_parts(name, item))
    return found


def _named_parts(name: str, item: Value) -> Iterator[tuple[str, Value]]:
    for key, part in item.items() if isinstance(item, dict) else enumerate(item):
        # Names grow with the depth: cut, or a chain of a hundred thousand lists takes gigabytes.
        yield (f"{name}.{key}"[-200:] if name else str(key)[-200:]), part


def _stored(tensor: Tensor) -> TensorView:
    storage = tensor.storage
    assert storage.source is not None
    return TensorView(storage.source, storage.dtype, tensor.shape, tensor.strides, tensor.offset)


class _Reader:
    """The constructors that the pickles of one file may call, and the depth of pickles within pickles."""

    def __init__(self, budget: Budget, depth: int = 0) -> None:
        self._budget, self._depth = budget, depth
        self._where = ""
        self._storages: dict[str, Storage] = {}

    def run(self, cursor: Cursor, source_of: Callable[[str], Readable] | None = None) -> Value:
        """One pickle. source_of: finds a storage's data by its key; None where the data comes later."""
        self._where = cursor.source.where

        def persistent(value: Value) -> Storage | Global:
            # Before 1.6, torch notes a module's class with the text of its source: the name will do.
            if type(value) is tuple and len(value) == 4 and value[0] == "module" and type(value[1]) is Global:
                return value[1]
            return self._storage_of(value, source_of)

        return Unpickler(cursor, self._constructors(), persistent, self._budget).run()

    def run_stream(self, source: Readable) -> Value:
        """A bare pickle, or torch's stream: magic number, protocol, system, value, keys of the storages, storages."""
        cursor = Cursor(source)
        first = self.run(cursor)
        if type(first) is not int or first != MAGIC:
            if self._storages:
                raise SoftPromptFileError("the pickle refers to data that is not in the file", where=source.where)
            return first
        protocol, system = self.run(cursor), self.run(cursor)
        little = system.get("little_endian") if isinstance(system, dict) else None
        if protocol != PROTOCOL or little is not True:
            raise SoftPromptFileError(
                "written by an unknown version of torch, or on a big-endian machine", where=source.where
            )
        value, keys = self.run(cursor), self.run(cursor)
        if type(keys) is not list or not all(isinstance(key, str) for key in keys):
            raise SoftPromptFileError("the list of tensors' data is broken", where=source.where)
        self._find_data(cursor, keys)
        return value

    def _find_data(self, cursor: Cursor, keys: list[str]) -> None:
        for key in keys:
            storage = self._storages.get(key)
            count = int.from_bytes(cursor.take(8), "little")
            if storage is None or count != storage.count or storage.source is not None:
                self._refuse("a tensor's data is not what the file says it is", got=f"{count} numbers")
            storage.source = cursor.take_slice(count * storage.item_size)
        if any(storage.source is None for storage in self._storages.values()):
            self._refuse("a tensor's data is missing")

    def _storage_of(self, value: Value, source_of: Callable[[str], Readable] | None) -> Storage:
        """("storage", class, key, device, count[, view]): torch's reference to a storage, in both layouts."""
        if (
            type(value) is not tuple
            or len(value) not in (5, 6)
            or value[0] != "storage"
            or value[5:] not in ((), (None,))
        ):
            self._refuse("the pickle refers to something that is not a tensor's data")
        kind, key, count = value[1], value[2], value[4]
        if type(kind) is not Global or kind.name not in STORAGES or not isinstance(key, str) or not is_size(count):
            self._refuse("the pickle describes a tensor's data in an unknown way")
        dtype, item_size = STORAGES[kind.name]
        known = self._storages.setdefault(key, Storage(dtype, count, item_size))
        if (known.dtype, known.count) != (dtype, count):
            self._refuse("the pickle describes one tensor's data in two ways")
        if source_of is not None and known.source is None:
            known.source = source_of(key)
            if known.source.size != count * item_size:
                self._refuse("a tensor's data is not what the file says it is", got=f"{known.source.size} bytes")
        return known

    def _constructors(self) -> dict[tuple[str, str], Constructor | None]:
        table: dict[tuple[str, str], Constructor | None] = {
            ("collections", "OrderedDict"): self._ordered_dict,
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch.storage", "_load_from_bytes"): self._load_from_bytes,
        }
        modules = dict.fromkeys(_MODULES, lambda _: Module())
        # A module lists in a set which of its buffers are not saved; protocol 2 uses Python 2's name for it.
        sets = {(module, "set"): self._empty_set for module in ("__builtin__", "builtins")}
        return table | modules | sets | {("torch", name): None for name in STORAGES}

    def _empty_set(self, arguments: tuple[Value, ...]) -> None:
        if arguments not in ((), ([],)):
            self._refuse("the pickle holds a set of something")

    def _ordered_dict(self, arguments: tuple[Value, ...]) -> StateDict:
        if arguments:
            self._refuse("the pickle builds a dictionary in an unknown way")
        return StateDict()

    def _tensor(self, arguments: tuple[Value, ...]) -> Tensor:
        """(storage, offset, shape, strides[, requires_grad, hooks[, metadata]])."""
        if not 4 <= len(arguments) <= 7:
            self._refuse("the pickle builds a tensor in an unknown way")
        storage, offset, shape, strides = arguments[:4]
        sizes = type(shape) is tuple and type(strides) is tuple and all(map(is_size, (offset, *shape, *strides)))
        if not isinstance(storage, Storage) or not sizes or len(shape) != len(strides) or len(shape) > 8:
            self._refuse("the pickle builds a tensor in an unknown way")
        if len(arguments) == 7 and arguments[6]:
            # There torch notes that the numbers are to be negated or conjugated.
            raise SoftPromptFileError(
                "the tensor is a view that torch negates or conjugates when it reads it",
                where=self._where,
                got=str(arguments[6])[:60],
                do="save tensor.resolve_neg().resolve_conj() instead",
            )
        return Tensor(storage, offset, shape, strides)

    def _parameter(self, arguments: tuple[Value, ...]) -> Tensor:
        if not arguments or not isinstance(arguments[0], Tensor):
            self._refuse("the pickle makes a parameter of what is not a tensor")
        return arguments[0]

    def _load_from_bytes(self, arguments: tuple[Value, ...]) -> Storage:
        """torch gives these bytes to an unpickler that runs programs; here this module reads them."""
        if self._depth >= _MAX_DEPTH or len(arguments) != 1:
            self._refuse("the pickle holds pickles within pickles")
        if not isinstance(arguments[0], Slice):
            self._refuse("the pickle has another value where bytes are expected")
        value = _Reader(self._budget, self._depth + 1).run_stream(arguments[0])
        if not isinstance(value, Storage) or value.source is None:
            self._refuse("the pickle has another value where a tensor's data is expected")
        return value

    def _refuse(self, what: str, *, got: object = "") -> NoReturn:
        raise SoftPromptFileError(what, where=self._where, got=got)
