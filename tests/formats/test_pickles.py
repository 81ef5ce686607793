"""Pickles: what tensors need is read, everything else is refused, and nothing ever runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sordino import formats
from sordino.errors import SoftPromptFileError
from sordino.formats.pickles import Budget, Global, StateDict, Unpickler
from sordino.formats.sources import Cursor, Files, Slice
from tests.formats.makers import mkultra, pickled, saved, tensor, zipped
from tests.formats.refusals import both_refuse

TARGET = "SORDINO_TEST_TARGET"


class Evil:
    """Unpickling this with Python's own unpickler makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f'echo evil > "{self.path}"',)


class EvilCode(Evil):
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import pathlib; pathlib.Path({str(self.path)!r}).touch()",)


def outer(evil: object) -> bytes:
    return pickle.dumps(evil)


def inside_a_dictionary(evil: object) -> bytes:
    return pickle.dumps({"tensor": [evil]})


def inner(evil: object) -> bytes:
    """A good-looking tensor whose storage's bytes are a bad pickle: torch's own loader would run it."""
    bad = pickle.dumps(evil)
    return (
        b"\x80\x03ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(bad))
        + bad
        + b"\x85RK\x00K\x04K\x08\x86K\x08K\x01\x86\x89ccollections\nOrderedDict\n)RtR."
    )


def inner_of_torch(evil: object) -> bytes:
    """The same, the bad pickle being the value of a stream of torch.save."""
    stream = io.BytesIO()
    torch.save(evil, stream, _use_new_zipfile_serialization=False)
    return inner_bytes(stream.getvalue())


def inner_bytes(bad: bytes) -> bytes:
    return b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(bad)) + bad + b"\x85R."


MALICIOUS: list[Callable[[object], bytes]] = [outer, inside_a_dictionary, inner, inner_of_torch]


@pytest.mark.parametrize("evil", [Evil, EvilCode])
@pytest.mark.parametrize("make", MALICIOUS)
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, make: Callable[[object], bytes], evil: type) -> None:
    made = tmp_path / "made by evil"
    content = make(evil(made))
    files = [mkultra(tmp_path / "v.json", content), tmp_path / "v.bin", tmp_path / "v.pt"]
    files[1].write_bytes(content)
    zipped(files[2], {"archive/data.pkl": content, "archive/version": b"3"})
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    (peft / "adapter_model.bin").write_bytes(content)
    for path in [*files, peft]:
        both_refuse(path)
        formats.detect(path)
        assert not made.exists()
    # The test can fail: Python's own unpickler runs it.
    if make in (outer, inside_a_dictionary):
        pickle.loads(content)
        assert made.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "builtins.getattr",
        "torch.load",
        "torch.storage.TypedStorage",
        "torch._utils.__builtins__",
        "collections.OrderedDict.__init__",
        "torch.serialization._load",
        "numpy.core.multiarray._reconstruct",
    ],
)
def test_names_outside_the_table_are_refused_by_name(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    for content in (
        f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1"),
        b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(attribute)])
        + attribute.encode()
        + b"\x93.",
    ):
        (tmp_path / "v").write_bytes(content)
        both_refuse(tmp_path / "v", "function or class that no tensor needs", name)


def test_reading_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "v.pt").write_bytes(saved(tensor()))
    mkultra(tmp_path / "v.json", pickled(tensor()))
    code = (
        "import sys; from pathlib import Path; from sordino import formats\n"
        "for path in sys.argv[1:]: formats.read(Path(path))\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path / "v.pt"), str(tmp_path / "v.json")], check=False)
    assert result.returncode == 0


# The machine alone


def run(folder: Path, content: bytes, budget: Budget | None = None) -> Any:
    path = folder / "pickle"
    path.write_bytes(content)
    with Files() as files:
        cursor = Cursor(files.open(path))
        table = {("collections", "OrderedDict"): lambda arguments: StateDict(), ("a", "b"): None}
        return Unpickler(cursor, table, lambda value: ("persistent", value), budget or Budget()).run()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        255,
        256,
        65535,
        65536,
        -1,
        -(2**31),
        2**31,
        2**100,
        -(2**100),
        0.5,
        -1e300,
        "",
        "text",
        "Ünïcödé " * 100,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1],
        [1, [2, "a"], (3,)],
        {},
        {"a": 1},
        {"a": {"b": [None, False]}, 2: (1.5,)},
    ],
)
def test_agrees_with_pythons_own_on_plain_values(tmp_path: Path, value: Any, protocol: int) -> None:
    found = run(tmp_path, pickle.dumps(value, protocol=protocol))
    assert found == value
    assert type(found) is type(value)


def test_long_lists_and_dictionaries_come_in_batches(tmp_path: Path) -> None:
    value = {"list": list(range(5000)), "dictionary": {str(number): number for number in range(3000)}}
    assert run(tmp_path, pickle.dumps(value)) == value


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("length", [0, 10, 255, 256, 200_000])
def test_bytes_stay_where_they_are(tmp_path: Path, protocol: int, length: int) -> None:
    found = run(tmp_path, pickle.dumps([bytes(length)], protocol=protocol))[0]
    assert isinstance(found, Slice)
    assert found.size == length


def test_shared_values_stay_shared(tmp_path: Path) -> None:
    shared: list[int] = []
    found = run(tmp_path, pickle.dumps([shared, shared]))
    assert found[0] is found[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x06.", "unknown protocol"),
        (b"\x80\x01.", "unknown protocol"),
        (b"\x80\x02", "cut short"),
        (b"\x80\x02X\xff\xff\xff\xffab", "too much text"),
        (b"\x80\x02X\x04\x00\x00\x00ab", "cut short"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "not UTF-8"),
        (b"\x80\x03B\xff\xff\xff\x7f.", "cut short"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "cut short"),
        (b"\x80\x02.", "not there"),
        (b"\x80\x02(0.", "not there"),
        (b"\x80\x02K\x01(\x85.", "not there"),
        (b"\x80\x02t.", "mark"),
        (b"\x80\x02e.", "mark"),
        (b"\x80\x02K\x01K\x02a.", "not a list"),
        (b"\x80\x02)K\x02a.", "not a list"),
        (b"\x80\x02K\x01K\x02K\x03s.", "not a dictionary"),
        (b"\x80\x02}(K\x01u.", "not a dictionary"),
        (b"\x80\x02})K\x03s.", "dictionary key"),
        (b"\x80\x02}NK\x03s.", "dictionary key"),
        (b"\x80\x02h\x05.", "never stored"),
        (b"\x80\x02q\x05.", "not there"),
        (b"\x80\x02K\x01)R.", "cannot be called"),
        (b"\x80\x02ca\nb\n)R.", "cannot be called"),
        (b"\x80\x02ccollections\nOrderedDict\nK\x01R.", "cannot be called"),
        (b"\x80\x02}}b.", "sets attributes"),
        (b"\x80\x04K\x01K\x02\x93.", "not text"),
        (b"\x80\x02c" + b"a" * 300 + b"\nb\n.", "too long"),
        (b"\x80\x02c\xff\nb\n.", "not ASCII"),
        (b"\x80\x02\x8a\xff" + b"\1" * 255 + b".", "too large"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "instruction that no tensor needs"),
        (b"\x80\x02I1\n.", "instruction that no tensor needs"),
        (b"\x80\x02ios\nsystem\n.", "instruction that no tensor needs"),
        (b"\x80\x02oos\nsystem\n.", "instruction that no tensor needs"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction that no tensor needs"),
        (b"\x80\x02\x82\x01.", "instruction that no tensor needs"),
        (b"\x80\x04\x8f.", "instruction that no tensor needs"),
        (b"\x80\x05\x97.", "instruction that no tensor needs"),
    ],
)
def test_broken_and_strange_pickles_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(SoftPromptFileError, match=words):
        run(tmp_path, content)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_work_and_text_are_bounded_over_all_pickles_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SoftPromptFileError, match="too many instructions"):
        run(tmp_path, b"\x80\x02" + b"N0" * 60_000 + b"N.")
    with pytest.raises(SoftPromptFileError, match="too much text"):
        run(tmp_path, b"\x80\x02" + (b"X\x00\x00\x10\x00" + bytes(1 << 20)) * 5 + b".")
    # Each of the inner pickles is small; together they are not.
    stream = saved(tensor().storage(), as_zip=False)
    # The first pickle of the stream is the magic number: fifteen bytes.
    padded = stream[:2] + b"N0" * 20_000 + stream[2:]
    (tmp_path / "v").write_bytes(inner_bytes(padded))
    both_refuse(tmp_path / "v", "no tensor")
    (tmp_path / "v").write_bytes(b"\x80\x03" + inner_bytes(padded)[2:-1] * 9 + b".")
    both_refuse(tmp_path / "v", "too many instructions")


def test_tuples_that_would_take_for_ever_to_compare_do_not(tmp_path: Path) -> None:
    # 2 ** 5000 leaves, if anything walked them.
    doubling = b"\x80\x02)" + b"q\x00h\x00\x86" * 5000
    found = run(tmp_path, doubling + b".")
    assert isinstance(found, tuple)
    (tmp_path / "v").write_bytes(doubling + b".")
    both_refuse(tmp_path / "v", "no tensor")


def test_lists_that_hold_themselves_end(tmp_path: Path) -> None:
    value: list[Any] = [tensor()]
    value.append(value)
    (tmp_path / "v").write_bytes(pickled({"a": value}))
    assert formats.read(tmp_path / "v").n_tokens == 4


def test_names_are_only_names(tmp_path: Path) -> None:
    assert run(tmp_path, b"\x80\x02ca\nb\n.") == Global("a", "b")


def test_the_zip_of_an_evil_pickle_is_found_by_content(tmp_path: Path) -> None:
    path = tmp_path / "looks like a voice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", outer(Evil(tmp_path / "made")))
    assert formats.detect(path) == "torch"
    both_refuse(path, "system")
    assert not (tmp_path / "made").exists()
