"""An interpreter for pickles that imports nothing and calls nothing but the constructors it is given.

Python's own unpickler imports and calls whatever a file names: loading a pickle runs its author's program. Here a name is only a
key in the caller's table; a name that is not in it is an error, and so is every instruction that files of tensors do not need. Work
and memory are bounded: instructions and text are counted, and bytes are not copied but remain slices of the file. Reference: the
instruction set in Python's pickletools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from sordino.errors import SoftPromptFileError
from sordino.formats.sources import Cursor

# A value is None, bool, int, float, str, list, dict, tuple, Slice (for bytes), Global, or what a constructor returned.
Value = Any
Constructor = Callable[[tuple[Value, ...]], Value]


@dataclass(frozen=True)
class Global:
    """The name of a function or class. Inert."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class StateDict(dict[Any, Any]):
    """A collections.OrderedDict. torch sets attributes on it, which hold no tensors and are dropped."""


class Module(dict[Any, Any]):
    """A torch module: its parameters and submodules by name."""


class Budget:
    """What remains to be spent on a file, over all pickles in it."""

    def __init__(self) -> None:
        self.instructions = 100_000
        self.text_bytes = 4 << 20


class Unpickler:
    """Runs one pickle. constructors: a function for each allowed name, or None for a name that is only a value.

    persistent: resolves a "persistent id", which is how torch refers to its storages.
    """

    def __init__(
        self,
        cursor: Cursor,
        constructors: Mapping[tuple[str, str], Constructor | None],
        persistent: Callable[[Value], Value],
        budget: Budget,
    ) -> None:
        self._cursor, self._constructors, self._persistent, self._budget = cursor, constructors, persistent, budget
        self._stack: list[Value] = []
        self._marks: list[int] = []
        self._memo: dict[int, Value] = {}

    def run(self) -> Value:
        """The value of the pickle; leaves the cursor after it. Raises SoftPromptFileError."""
        while True:
            code = self._cursor.take(1)
            if code == b".":
                return self._pop()
            self._budget.instructions -= 1
            if self._budget.instructions < 0:
                self._refuse("the pickle has too many instructions for a soft prompt")
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                self._refuse("the pickle uses an instruction that no tensor needs", got=f"0x{code.hex()}")
            instruction(self)

    def _refuse(self, what: str, *, got: object = "", do: str = "") -> NoReturn:
        raise SoftPromptFileError(
            what,
            where=f"{self._cursor.source.where}, byte {self._cursor.offset}",
            got=got,
            do=do or "pickles can run programs, so only the parts that tensors are made of are read",
        )

    # Stack

    def _push(self, value: Value) -> None:
        self._stack.append(value)

    def _pop(self) -> Value:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self._refuse("the pickle takes a value that is not there")
        return self._stack.pop()

    def _top(self) -> Value:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_to_mark(self) -> list[Value]:
        if not self._marks:
            self._refuse("the pickle looks for a mark that is not there")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # Arguments in the file

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._cursor.take(struct.calcsize(form)))[0]

    def _text(self, length: int, encoding: str) -> str:
        self._budget.text_bytes -= length
        if self._budget.text_bytes < 0:
            self._refuse("the pickle has too much text for a soft prompt")
        try:
            return self._cursor.take(length).decode(encoding)
        except UnicodeDecodeError:
            self._refuse("the pickle has text that is not UTF-8")

    def _line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            if len(line) > 256:
                self._refuse("the pickle has a name that is too long")
            line += self._cursor.take(1)
        return self._ascii(line[:-1])

    def _ascii(self, line: bytes) -> str:
        if not line.isascii():
            self._refuse("the pickle has a name that is not ASCII", got=line[:40])
        return line.decode("ascii")

    # Instructions

    def _mark(self) -> None:
        self._marks.append(len(self._stack))

    def _pop_mark(self) -> None:
        self._pop_to_mark()

    def _protocol(self) -> None:
        version = self._number("<B")
        if not 2 <= version <= 5:
            self._refuse("the pickle has an unknown protocol", got=version)

    def _long(self) -> None:
        length = self._number("<B")
        if length > 16:
            self._refuse("the pickle has a number that is too large", got=f"{length} bytes")
        self._push(int.from_bytes(self._cursor.take(length), "little", signed=True))

    def _bytes(self, form: str) -> None:
        self._push(self._cursor.take_slice(self._number(form)))

    def _tuple(self, count: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(count)])))

    def _append(self, values: list[Value]) -> None:
        target = self._top()
        if type(target) is not list:
            self._refuse("the pickle appends to what is not a list")
        target.extend(values)

    def _set_items(self, values: list[Value]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            self._refuse("the pickle sets items of what is not a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Nested tuples can take exponential time to hash; beyond 61 bits, any number of integers have one hash.
            if not isinstance(key, (str, int)) or (isinstance(key, int) and key.bit_length() > 61):
                self._refuse("the pickle has a dictionary key that is neither text nor a number of at most 61 bits")
            target[key] = value

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _remember(self, key: int) -> None:
        self._memo[key] = self._top()

    def _recall(self, key: int) -> None:
        if key not in self._memo:
            self._refuse("the pickle recalls what it never stored", got=key)
        self._push(self._memo[key])

    def _global(self) -> None:
        self._name(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _name(self, module: Value, name: Value) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            self._refuse("the pickle has a name that is not text")
        if (module, name) not in self._constructors:
            self._refuse(
                "the pickle asks for a function or class that no tensor needs",
                got=f"{module}.{name}"[:120],
                do="save the tensor alone with torch, as in torch.save(prompt.weight, FILE): a file that needs classes can run "
                "programs, so only the parts that tensors are made of are read",
            )
        self._push(Global(module, name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        constructor = self._constructors.get((function.module, function.name)) if type(function) is Global else None
        if constructor is None or type(arguments) is not tuple:
            self._refuse("the pickle calls what cannot be called")
        self._push(constructor(arguments))

    def _new_object(self) -> None:
        # Only classes whose instances are modules; torch's pickles give their constructors no arguments.
        arguments = self._top()
        self._reduce()
        if arguments != () or type(self._top()) is not Module:
            self._refuse("the pickle uses an instruction that no tensor needs, to make an object of this class")

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if type(target) is Module and isinstance(state, dict):
            for values in (state.get("_parameters"), state.get("_modules")):
                target.update(values if isinstance(values, dict) else {})
        elif type(target) is not StateDict:
            self._refuse("the pickle sets attributes of what has none")

    def _persistent_id(self) -> None:
        self._push(self._persistent(self._pop()))


_INSTRUCTIONS: dict[bytes, Callable[[Unpickler], None]] = {
    b"\x80": Unpickler._protocol,
    # A frame's length is a hint for buffering.
    b"\x95": lambda m: m._number("<Q"),
    b"(": Unpickler._mark,
    b"0": lambda m: m._pop(),
    b"1": Unpickler._pop_mark,
    b"N": lambda m: m._push(None),
    b"\x88": lambda m: m._push(True),
    b"\x89": lambda m: m._push(False),
    b"K": lambda m: m._push(m._number("<B")),
    b"M": lambda m: m._push(m._number("<H")),
    b"J": lambda m: m._push(m._number("<i")),
    b"\x8a": Unpickler._long,
    b"G": lambda m: m._push(m._number(">d")),
    b"\x8c": lambda m: m._push(m._text(m._number("<B"), "utf-8")),
    b"X": lambda m: m._push(m._text(m._number("<I"), "utf-8")),
    # Text of Python 2.
    b"U": lambda m: m._push(m._text(m._number("<B"), "latin-1")),
    b"T": lambda m: m._push(m._text(m._number("<I"), "latin-1")),
    b"C": lambda m: m._bytes("<B"),
    b"B": lambda m: m._bytes("<I"),
    b"\x8e": lambda m: m._bytes("<Q"),
    b")": lambda m: m._push(()),
    b"\x85": lambda m: m._tuple(1),
    b"\x86": lambda m: m._tuple(2),
    b"\x87": lambda m: m._tuple(3),
    b"t": lambda m: m._push(tuple(m._pop_to_mark())),
    b"]": lambda m: m._push([]),
    b"a": lambda m: m._append([m._pop()]),
    b"e": lambda m: m._append(m._pop_to_mark()),
    b"}": lambda m: m._push({}),
    b"s": Unpickler._set_item,
    b"u": lambda m: m._set_items(m._pop_to_mark()),
    b"q": lambda m: m._remember(m._number("<B")),
    b"r": lambda m: m._remember(m._number("<I")),
    b"\x94": lambda m: m._remember(len(m._memo)),
    b"h": lambda m: m._recall(m._number("<B")),
    b"j": lambda m: m._recall(m._number("<I")),
    b"c": Unpickler._global,
    b"\x93": Unpickler._stack_global,
    b"R": Unpickler._reduce,
    b"\x81": Unpickler._new_object,
    b"b": Unpickler._build,
    b"Q": Unpickler._persistent_id,
}
