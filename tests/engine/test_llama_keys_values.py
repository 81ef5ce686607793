"""KV prompts on llama.cpp, with a tiny model: what it says is what PyTorch says, and odd states are refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.engine.config import Limits
from sordino.engine.embedded import EmbeddedEngine
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, Request
from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.llama_cpp_runner import GgufRunner
from sordino.engine.runners.llama_keys_values import with_keys_values
from sordino.engine.runners.llama_room import CellBudget
from sordino.engine.runners.llama_state import SavedState
from sordino.engine.runners.runner import Span
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Sampling
from sordino.errors import ConfigError, DoesNotFit, ModelError
from sordino.models import base_model, files
from sordino.models.base_model import BaseModel
from sordino.models.description import describe
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.mixture import Mixture, uniform
from sordino.prompts.prompt import KeysValues, Prompt
from sordino.prompts.soft_prompt import SoftPrompt
from tests.prompts.kv_of import kv_of
from tests.tiny_models import tiny, tiny_gguf, tiny_tokenizer

TEXT = "the keeper wrote of the sea"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def base() -> BaseModel:
    network = tiny("llama", dtype=torch.float32)
    return base_model.from_parts(network, tiny_tokenizer(), name="tiny", fingerprint="tiny")


@contextmanager
def runner_of(path: Path, row_cells: int | None) -> Iterator[GgufRunner]:
    context = LlamaContext(path, CellBudget(1 << 28, 512, 3, row_cells), batch=64, threads=1)
    try:
        yield GgufRunner(describe(files.resolve(str(path)), path), context, prefix_bytes=1 << 20)
    finally:
        context.close()


def prompt_of(base: BaseModel, seed: int = 0, tokens: int = 6) -> SoftPrompt:
    random = np.random.default_rng(seed)
    return SoftPrompt((random.standard_normal((tokens, base.d_model)) * base.embedding_rms).astype(np.float32))


def logp(runner: TorchRunner | GgufRunner, number: int, prompt: Prompt, base: BaseModel) -> np.ndarray:
    ids = base.encode(TEXT)
    assert runner.open(number, prompt, ids) is not None
    logits_1V = torch.as_tensor(runner.run([Span(number, ids, True)]))
    return logits_1V[0].double().log_softmax(-1).numpy()


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    return float((np.exp(one) * (one - other)).sum())


@pytest.mark.parametrize("row_cells", [None, 512], ids=["one pool", "split"])
@pytest.mark.parametrize("tokens", [1, 6, 100])
def test_it_says_what_torch_says(path: Path, base: BaseModel, row_cells: int | None, tokens: int) -> None:
    """As near as for the embedding prompt that it was taken from: llama.cpp's cache holds float16."""
    prompts = [prompt_of(base, seed, tokens) for seed in (0, 1)]
    taken = [kv_of(base, prompt) for prompt in prompts]
    torch_runner = TorchRunner(base)
    with runner_of(path, row_cells) as runner:
        far = [
            divergence(logp(torch_runner, at, one, base), logp(runner, at, one, base))
            for at, one in enumerate((prompts[0], *taken))
        ]
        assert max(far[1:]) <= max(1.25 * far[0], 1e-6), far
        # One that was lost on the way would show.
        assert divergence(logp(torch_runner, 7, taken[0], base), logp(torch_runner, 8, taken[1], base)) > 1e-3
        for number in range(3):
            runner.close(number, ())
        again = logp(runner, 3, taken[0], base)
        assert runner.cache_use().hits == 1
        assert divergence(again, logp(torch_runner, 9, taken[0], base)) <= max(1.25 * far[0], 1e-6)


def test_a_text_is_needed_and_another_shape_is_refused(path: Path, base: BaseModel) -> None:
    taken = kv_of(base, prompt_of(base))
    with runner_of(path, None) as runner:
        with pytest.raises(ConfigError, match="no first token after a KV prompt"):
            runner.open(0, taken, ())
        deeper = KVPrompt(np.zeros((2, 128), np.float32), type(taken.shape)(4, 2, 8), taken.last_D)
        with pytest.raises(DoesNotFit, match="4 layers"):
            runner.open(0, deeper, [5])
        large = KVPrompt(taken.flat_PW * 1e6, taken.shape, taken.last_D)
        with pytest.raises(DoesNotFit, match="not finite"):
            runner.open(0, large, [5])
        assert runner.open(0, taken, [5]) == 0


def written(engine: Engine, prompts: Sequence[Prompt | Mixture], ids: Sequence[int]) -> list[list[int]]:
    """The greedy tokens after each prompt, all in one batch."""
    numbers = [engine.submit(Request(tuple(ids), prompt, Sampling(max_tokens=10, temperature=0))) for prompt in prompts]
    found: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.busy:
        for number, event in engine.step():
            if isinstance(event, Chunk):
                found[number] += [drawn.token for drawn in event.drawn]
            else:
                assert event.error is None, event.error
    return [found[number] for number in numbers]


@pytest.mark.parametrize("row_cells", [None, 512], ids=["one pool", "split"])
def test_in_a_batch_and_in_a_mixture_it_writes_what_it_was_taken_from(
    path: Path, base: BaseModel, row_cells: int | None
) -> None:
    one, other = prompt_of(base, 0), prompt_of(base, 1, 3)
    with runner_of(path, row_cells) as runner:
        runner.model = replace(runner.model, stop_ids=frozenset())
        engine = Engine(runner, Limits(rows=3))
        assert KVPrompt.kind in EmbeddedEngine(engine).capabilities.kinds
        plain = written(engine, [one, Mixture((one, other), uniform(2))], base.encode(TEXT))
        taken = written(engine, [kv_of(base, one), Mixture((kv_of(base, one), other), uniform(2))], base.encode(TEXT))
        assert taken == plain
        assert plain[0] != plain[1]


# Bytes -------------------------------------------------------------------------------------------------------------


def cache(
    positions: list[int], layers: int, *, transposed: bool, width: int = 4, kind: int = 1, rotated: int = 0
) -> bytes:
    """A cache of zeros with a stream without cells in front, written from its description."""
    size = 2 if kind == 1 else 4
    parts = [struct.pack("<3I", 2, 0, len(positions))]
    parts += [struct.pack("<iIi", position, 1, 0) for position in positions]
    parts.append(struct.pack("<4I", int(transposed), layers, rotated, 0))
    parts += [struct.pack("<iQ", kind, width * size) + bytes(len(positions) * width * size)] * layers
    head = struct.pack("<iII", kind, size, width) if transposed else struct.pack("<iQ", kind, width * size)
    parts += [head + bytes(len(positions) * width * size)] * layers
    return b"".join(parts)


def state_of(*caches: bytes) -> SavedState:
    return np.frombuffer(bytes(8) + b"".join(caches), np.uint8)


def given(layers: int = 2, tokens: int = 2) -> KeysValues:
    numbers = [np.arange(1, tokens * 4 + 1, dtype=np.float32).reshape(2, tokens, 2) + 100 * at for at in range(layers)]
    return KeysValues(numbers, [-one for one in numbers], np.zeros(0, np.float32))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_numbers_go_to_the_cells_of_their_positions(transposed: bool, kind: int) -> None:
    """Cells are in any order, and BOS is in front."""
    made = with_keys_values(
        state_of(cache([2, 0, 1], 2, transposed=transposed, kind=kind)), given(), "gpt2", first=1, windowed=None
    )
    dtype = np.dtype("<f2" if kind == 1 else "<f4")
    at = 8 + 12 + 3 * 12 + 16
    for layer in range(2):
        rows = made[at + 12 : at + 12 + 12 * dtype.itemsize].view(dtype).reshape(3, 4)
        expected = given().keys_LHPC[layer]
        np.testing.assert_array_equal(rows, [expected[:, 1].ravel(), np.zeros(4), expected[:, 0].ravel()])
        at += 12 + 12 * dtype.itemsize
    for layer in range(2):
        numbers = made[at + 12 : at + 12 + 12 * dtype.itemsize].view(dtype)
        rows = numbers.reshape(4, 3).T if transposed else numbers.reshape(3, 4)
        expected = given().values_LHPC[layer]
        np.testing.assert_array_equal(rows, [expected[:, 1].ravel(), np.zeros(4), expected[:, 0].ravel()])
        at += 12 + 12 * dtype.itemsize
    assert at == len(made)


def test_layers_with_a_window_are_a_second_cache() -> None:
    """It may lack cells that no text sees any more."""
    state = state_of(cache([0, 1], 1, transposed=False), cache([1], 2, transposed=False))
    made = with_keys_values(state, given(3), "gpt2", first=0, windowed=(True, False, True))
    numbers = made[8 + 12 + 24 + 16 + 12 :][:16].view("<f2").reshape(2, 4)
    np.testing.assert_array_equal(numbers[0], given(3).keys_LHPC[1][:, 0].ravel())


def test_channels_of_llama_are_neighbours() -> None:
    keys = np.arange(8, dtype=np.float32).reshape(1, 1, 8)
    state = state_of(cache([0], 1, transposed=False, width=8, kind=0))
    made = with_keys_values(state, KeysValues([keys], [keys], keys[0, 0]), "llama", first=0, windowed=None)
    assert made[8 + 12 + 12 + 16 + 12 :][:32].view("<f4").tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert made[-32:].view("<f4").tolist() == list(range(8))


@pytest.mark.parametrize(
    "state",
    [
        state_of(),
        state_of(cache([0, 1], 2, transposed=False)[:-1]),
        state_of(cache([0, 1], 2, transposed=False), b"more"),
        state_of(cache([0, 1], 3, transposed=False)),
        state_of(cache([0, 1], 2, transposed=False, rotated=64)),
        state_of(cache([0, 2], 2, transposed=False)),
        state_of(cache([0, 1], 2, transposed=False, width=8)),
        state_of(
            cache([0, 1], 2, transposed=False, kind=0).replace(struct.pack("<iQ", 0, 16), struct.pack("<iQ", 8, 16))
        ),
        state_of(cache([0, 1], 2, transposed=True).replace(struct.pack("<iII", 1, 2, 4), struct.pack("<iII", 1, 4, 4))),
        state_of(struct.pack("<2I", 1, 1), struct.pack("<iI2i", 0, 2, 0, 1)),
    ],
)
def test_another_layout_is_refused_and_never_misread(state: SavedState) -> None:
    with pytest.raises(ModelError, match="saves its state in another way"):
        with_keys_values(state, given(), "gpt2", first=0, windowed=None)
