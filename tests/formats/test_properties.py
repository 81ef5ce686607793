"""Any soft prompt goes through any format; any damage to any file gives a soft prompt or our error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sordino import formats
from sordino.errors import SoftPromptFileError
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.mixture import RULES, Gate, Mixture
from sordino.prompts.soft_prompt import PLACEMENTS, RATINGS, BaseRef, Metadata, SoftPrompt
from tests.formats.kv_makers import kv_prompt
from tests.formats.makers import one_of_each, prompt

matrices = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
texts = st.text(max_size=20)
sizes = st.integers(0, 2**40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=4)


@st.composite
def prompts(draw: st.DrawFn) -> SoftPrompt:
    values = draw(matrices)
    rms = draw(st.floats(0, 1e6))
    base = BaseRef(draw(texts), draw(texts), draw(st.sampled_from([0, values.shape[1]])), draw(sizes), draw(sizes), rms)
    return SoftPrompt(
        values,
        Metadata(
            name=draw(texts),
            # A blank author is no author.
            author=draw(texts.filter(lambda text: not text or text.strip())),
            supported=tuple(draw(st.lists(texts, max_size=3))),
            description=draw(texts),
            base=base,
            placement=draw(st.sampled_from(PLACEMENTS)),
            licence=draw(texts),
            tags=tuple(draw(st.lists(texts, max_size=3))),
            rating=draw(st.sampled_from(["", *RATINGS])),
            created=draw(texts),
            training=draw(objects),
            heldout=draw(objects),
            samples=tuple(draw(st.lists(st.fixed_dictionaries({"prompt": texts, "with": texts}), max_size=2))),
            # Names that no format has a key for.
            foreign={f"x-{key}": value for key, value in draw(objects).items()},
        ),
    )


@pytest.mark.parametrize("to", formats.WRITABLE)
@settings(max_examples=30)
@given(prompt=prompts())
def test_any_soft_prompt_comes_back_as_it_was(to: str, prompt: SoftPrompt) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v"
        formats.write(prompt, path, to=to, force=True)
        assert formats.detect(path) == to
        back = formats.read(path)
        seen = formats.peek(path)
    assert back.matrix.tobytes() == prompt.matrix.tobytes()
    assert back.metadata == (Metadata(name="v") if to == "npy" else prompt.metadata)
    assert (seen.metadata, (seen.n_tokens, seen.d_model)) == (back.metadata, back.matrix.shape)


@settings(max_examples=20)
@given(prompt=prompts())
def test_the_same_soft_prompt_gives_the_same_bytes_after_any_journey(prompt: SoftPrompt) -> None:
    with tempfile.TemporaryDirectory() as folder:
        formats.write(prompt, Path(folder) / "first.zip", force=True)
        for to in ("peft", "mkultra", "safetensors"):
            formats.write(formats.read(Path(folder) / "first.zip"), Path(folder) / to, to=to, force=True)
            formats.write(formats.read(Path(folder) / to), Path(folder) / "again.zip", force=True)
            assert (Path(folder) / "again.zip").read_bytes() == (Path(folder) / "first.zip").read_bytes()


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    first = draw(prompts())
    others = st.lists(st.integers(1, 5), max_size=3)
    components = [first] + [
        SoftPrompt(np.full((tokens, first.d_model), 0.5, np.float32), Metadata(name=draw(texts)))
        for tokens in draw(others)
    ]
    count = len(components)
    positive = st.floats(0, 1e6, allow_subnormal=False)
    weights = draw(st.lists(positive, min_size=count, max_size=count).filter(lambda weights: sum(weights) > 1e-100))
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    gate = None
    if draw(st.booleans()):
        gate = Gate(
            draw(arrays(np.float32, (count, first.d_model), elements=floats)),
            draw(arrays(np.float32, count, elements=floats)),
        )
    metadata = draw(prompts()).metadata
    base = replace(metadata.base, d_model=draw(st.sampled_from([0, first.d_model])))
    return Mixture(
        tuple(components), np.array(weights), draw(st.sampled_from(RULES)), gate, replace(metadata, base=base)
    )


@settings(max_examples=60)
@given(mixture=mixtures())
def test_any_mixture_comes_back_as_it_was(mixture: Mixture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v"
        formats.write_mixture(mixture, path)
        assert formats.detect(path) == "mixture"
        back, seen = formats.read_any(path), formats.peek(path)
        formats.write_mixture(back, Path(folder) / "w")
        assert path.read_bytes() == (Path(folder) / "w").read_bytes()
    assert isinstance(back, Mixture)
    assert (back.content_hash, back.metadata) == (mixture.content_hash, mixture.metadata)
    assert [prompt.metadata for prompt in back.components] == [prompt.metadata for prompt in mixture.components]
    assert (seen.metadata, seen.n_tokens, seen.d_model) == (back.metadata, back.n_tokens, back.d_model)
    assert seen.components == len(mixture.components)


@st.composite
def kv_prompts(draw: st.DrawFn) -> KVPrompt:
    shape = KVShape(*(draw(st.integers(1, 3)) for _ in range(3)))
    floats = st.floats(width=draw(st.sampled_from([16, 32])), allow_nan=False, allow_infinity=False)
    flat_PW = draw(arrays(np.float32, (draw(st.integers(1, 4)), shape.width), elements=floats))
    last_D = draw(arrays(np.float32, draw(st.integers(0, 4)), elements=floats))
    metadata = draw(prompts()).metadata
    base = replace(metadata.base, d_model=len(last_D), n_layers=draw(st.sampled_from([0, shape.layers])))
    return KVPrompt(flat_PW, shape, last_D, replace(metadata, base=base))


@settings(max_examples=60)
@given(prompt=kv_prompts(), to=st.sampled_from(sorted(formats.KV_WRITABLE)))
def test_any_kv_prompt_comes_back_as_it_was(prompt: KVPrompt, to: str) -> None:
    to = "kv" if prompt.metadata.placement == "after_bos" else to
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v"
        formats.write(prompt, path, to=to)
        back, seen = formats.read_any(path), formats.peek(path)
        assert isinstance(back, KVPrompt)
        formats.write(back, Path(folder) / "w", to=to)
        again = formats.read_any(Path(folder) / "w")
    assert again.content_hash == back.content_hash == prompt.content_hash
    assert (back.metadata, back.shape) == (prompt.metadata, prompt.shape)
    assert (seen.metadata, seen.n_tokens, seen.d_model) == (back.metadata, back.n_tokens, back.d_model)


# Damage

KINDS = [
    "native.zip",
    "m.json",
    "n.npy",
    "s.safetensors",
    "peft",
    "kobold 8",
    "kobold 12",
    "kobold 14",
    "zip in zip",
    "new.pt",
    "old.pt",
    "state.bin",
    "bare.pkl",
    "mkultra's own",
    "nemo",
    "mixture",
    "kv",
    "kv peft",
]


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    found = {**dict(one_of_each(folder)), "mixture": folder / "m.mix.zip"}
    gate = Gate(np.ones((2, 8), np.float32), np.zeros(2, np.float32))
    formats.write_mixture(Mixture((prompt(), prompt(seed=1)), np.array([0.25, 0.75]), gate=gate), found["mixture"])
    found |= {"kv": folder / "v.kv.zip", "kv peft": folder / "kv-peft"}
    formats.write(kv_prompt(), found["kv"])
    formats.write(kv_prompt(), found["kv peft"], to="peft")
    assert set(found) == set(KINDS)
    return found


def flipped(data: Any, content: bytes) -> bytes:
    changed = bytearray(content)
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4), label="at"):
        changed[at] = data.draw(st.integers(0, 255), label="byte")
    return bytes(changed)


def cut(data: Any, content: bytes) -> bytes:
    return content[: data.draw(st.integers(0, len(content) - 1), label="length")]


def shifted(data: Any, content: bytes) -> bytes:
    at = data.draw(st.integers(0, len(content)), label="at")
    return content[:at] + data.draw(st.binary(max_size=9), label="more") + content[at + data.draw(st.integers(0, 9)) :]


def outcome_of(operation: Callable[[Path], Any], path: Path) -> Any:
    """What comes back or our error; any other exception fails the test."""
    try:
        return operation(path)
    except SoftPromptFileError as error:
        return error


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80)
@given(data=st.data())
def test_damage_gives_a_soft_prompt_or_our_error(good_files: dict[str, Path], kind: str, data: Any) -> None:
    path = good_files[kind]
    damaged = path if path.is_file() else data.draw(st.sampled_from(sorted(path.iterdir())), label="file")
    content = damaged.read_bytes()
    try:
        damaged.write_bytes(data.draw(st.sampled_from([flipped, cut, shifted]), label="damage")(data, content))
        operations: list[Callable[[Path], Any]] = [formats.read_any, formats.read, formats.peek, formats.detect]
        for operation in operations:
            outcome = outcome_of(operation, path)
            assert not isinstance(outcome, SoftPrompt) or np.isfinite(outcome.matrix).all()
            assert not isinstance(outcome, SoftPromptFileError) or "\n" not in str(outcome)
    finally:
        damaged.write_bytes(content)


@settings(max_examples=100)
@given(
    content=st.binary(max_size=300),
    head=st.sampled_from([b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"{", b"\x80\x02", b"\x80\x04"]),
)
def test_noise_gives_our_error(content: bytes, head: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise"
        path.write_bytes(head + content)
        with pytest.raises(SoftPromptFileError):
            formats.read(path)
