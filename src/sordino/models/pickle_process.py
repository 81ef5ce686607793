"""The process that reads pickled weights: `python -m sordino.models.pickle_process TASK`. Nothing else imports this module.

TASK is JSON: {"files": [...], "folder": ..., "tied": {name: name of the same weights}}. The files become safetensors in the folder.
The last line on stdout is an error as JSON, {"what", "where", "got", "do"} or {"errno", "what"}; without one, the exit code is 0.

torch's restricted unpickler (`weights_only`) makes tensors and plain containers only, and runs nothing. What it leaves open is
bounded here: how much a file unpacks to, how much memory it makes torch ask for, and how much is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from sordino.errors import ModelError
from sordino.formats.safetensors import header_of
from sordino.models.memory import ran_out

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# The pickle of a model of thousands of tensors has less than one megabyte.
_MAX_PICKLE = 64 << 20
# Beside the file itself, for torch's own work.
_SPARE_BYTES = 512 << 20
_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class NamedTensor:
    """name: safetensors' and transformers'. tensor: on the CPU, of one of TYPES."""

    name: str
    tensor: Tensor

    @property
    def bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()


def main(task: str) -> int:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The stacks of more threads would count as its memory.
    torch.set_num_threads(1)
    settings = json.loads(task)
    try:
        _convert([Path(name) for name in settings["files"]], Path(settings["folder"]), settings["tied"])
    except ModelError as error:
        return _report(what=error.what, where=error.where, got=error.got, do=error.do)
    except OSError as error:
        return _report(errno=error.errno, what=str(error.strerror))
    return 0


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        os.read(0, 1)
    os._exit(1)


def _report(**error: object) -> int:
    print(json.dumps(error), flush=True)  # noqa: T201 - its output is the terminal's
    return 1


def _convert(files: list[Path], folder: Path, tied: Mapping[str, str]) -> None:
    _limit_memory(2 * max(path.stat().st_size for path in files) + _SPARE_BYTES)
    places: dict[str, str] = {}
    for number, path in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors" if len(files) > 1 else "model.safetensors"
        with _reading(path):
            tensors = list(_checked(_loaded(path), tied, path))
        for one in tensors:
            if one.name in places:
                raise _refusal("two files hold one tensor", path, one.name[:80])
            places[one.name] = name
        write(folder / name, tensors)
    if len(files) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _limit_memory(more: int) -> None:
    """This process gets at most so many bytes of address space more than it has. Windows has no such limit."""
    if sys.platform == "win32":
        return
    import resource

    limit = psutil.Process().memory_info().vms + more
    # A machine may have a lower limit already.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What torch says of a file as one ModelError. The disk's own errors stay what they are."""
    try:
        yield
    except (ModelError, OSError):
        raise
    except pickle.UnpicklingError as error:
        if named := _GLOBAL.search(str(error)):
            raise ModelError(
                "the pickle asks for a function or class that no weights need, which could run a program; nothing of it was run",
                where=path,
                got=named[1][:120],
                do="take the model from another source, or one with safetensors weights",
            ) from None
        # Between torch's advice to other readers.
        why = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise _refusal("the pickle cannot be read as weights", path, why[1][:200] if why else "") from None
    except Exception as error:
        if ran_out(error):
            raise _refusal("the file asks for more memory than its size justifies", path, "") from None
        raise _refusal("cannot be read as pickled weights", path, f"{type(error).__name__}: {error}"[:200]) from None


def _refusal(what: str, path: Path, got: object) -> ModelError:
    return ModelError(what, where=path, got=got, do="fetch it again, or take a model with safetensors weights")


def _loaded(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_archive(path)
    # Before torch 1.6 files are a stream, which cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def _check_archive(path: Path) -> None:
    """torch stores members as they are; whatever is compressed, or counted twice, was made to grow."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refusal("the archive is compressed, which torch's files are not", path, "")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _refusal("the archive's members are larger together than the file", path, "")
    if any(member.filename.endswith("data.pkl") and member.file_size > _MAX_PICKLE for member in members):
        raise _refusal("the pickle in the archive is too large for weights", path, "")


def _checked(state: Any, tied: Mapping[str, str], path: Path) -> Iterator[NamedTensor]:
    """The tensors of a state dictionary; of two names for one tensor that the family ties, the first only."""
    if not isinstance(state, Mapping):
        raise _refusal("no state dictionary", path, type(state).__name__)
    left = 2 * path.stat().st_size
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise _refusal("the state dictionary holds something else than named tensors", path, _called(name, tensor))
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.dtype not in TYPES:
            raise _refusal("a tensor of a kind that safetensors does not hold", path, _called(name, tensor))
        if (first := tied.get(name)) and _same(tensor, state.get(first)):
            continue
        one = NamedTensor(name, tensor.detach())
        left -= one.bytes
        if one.bytes > tensor.untyped_storage().nbytes() or left < 0:
            raise _refusal("tensors that repeat their numbers are larger than the file", path, name[:80])
        yield one


def _called(name: object, value: object) -> str:
    kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
    return f"{kind} called {str(name)[:80]!r}"


def _same(tensor: Tensor, other: object) -> bool:
    """Whether two names stand for the same numbers in memory."""
    return (
        isinstance(other, Tensor)
        and other.layout is torch.strided
        and (tensor.data_ptr(), tensor.dtype, tensor.shape) == (other.data_ptr(), other.dtype, other.shape)
        and tensor.stride() == other.stride()
    )


def write(path: Path, tensors: list[NamedTensor]) -> None:
    """A safetensors file, a tensor at a time: the library of that name copies all of them first."""
    described = [(one.name, TYPES[one.tensor.dtype], one.tensor.shape, one.bytes) for one in tensors]
    with path.open("wb") as file:
        file.write(header_of(described, {"format": "pt"}))
        for one in tensors:
            flat = one.tensor.contiguous().reshape(-1)
            if flat.numel():
                file.write(flat.view(torch.uint8).numpy().data)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
