"""A baked .gguf file: what is copied, what grows, and what llama.cpp's own server writes from it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize

from benchmarks.gguf import llama_server
from sordino import formats
from sordino.baking.bake import Baked, bake
from sordino.engine.config import EngineOptions
from sordino.engine.runners.build import gguf_runner
from sordino.engine.runners.runner import Runner, Span
from sordino.errors import ModelError
from sordino.models import files
from sordino.models.description import describe
from sordino.prompts.attention import PLAIN
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.tiny_models import VOCAB_SIZE, tiny, tiny_gguf

OPENINGS = (
    "It rained all day, and",
    "The keeper wrote in the log that",
    "My sister called on Tuesday to say",
    "There was nothing in the shop but",
    "In the morning the street was",
)


def prompt(n: int = 4, width: int = 32) -> SoftPrompt:
    return SoftPrompt(np.random.default_rng(0).normal(scale=0.2, size=(n, width)).astype(np.float32), Metadata())


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def test_tensors_are_copied_and_three_grow(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "base.gguf")
    soft = prompt()
    bake(str(source), {"voice": soft}, tmp_path / "baked.gguf")
    before, after = tensors(source), tensors(tmp_path / "baked.gguf")
    for name, tensor in before.items():
        if name in ("token_embd.weight", "output.weight"):
            assert np.array_equal(after[name].data[:VOCAB_SIZE], tensor.data)
        else:
            assert np.array_equal(after[name].data, tensor.data)
            assert after[name].tensor_type == tensor.tensor_type
    assert np.array_equal(after["token_embd.weight"].data[VOCAB_SIZE:], soft.matrix)
    rows = after["output.weight"].data[VOCAB_SIZE:]
    assert len(rows) == 4
    assert all(np.array_equal(row, rows[0]) for row in rows)
    assert any(np.array_equal(rows[0], row) for row in before["output.weight"].data)
    fields = GGUFReader(tmp_path / "baked.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents()[VOCAB_SIZE:] == [f"<|voice:{place}|>" for place in range(4)]
    assert fields["tokenizer.ggml.token_type"].contents()[VOCAB_SIZE:] == [3] * 4
    assert fields["llama.vocab_size"].contents() == VOCAB_SIZE + 4
    assert "<|voice:3|>" in fields["tokenizer.chat_template"].contents()
    assert fields["general.name"].contents() == "tiny llama + voice"
    described = describe(files.resolve(str(tmp_path / "baked.gguf")), tmp_path / "baked.gguf")
    assert described.encode_markup("<|voice:0|>the") == [VOCAB_SIZE, *described.encode("the")]


def test_a_tied_head_and_coarse_embeddings(tmp_path: Path) -> None:
    """The head gets the coarse rows of its own; the embeddings become 16-bit floats."""
    plain = tiny_gguf(tmp_path / "plain.gguf", network=tiny("llama", dtype=torch.float32))
    source = tmp_path / "base.gguf"
    reader = GGUFReader(plain)
    writer = GGUFWriter(source, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(
                name, field.contents(), kind, sub_type=field.types[-1] if len(field.types) > 1 else None
            )
    coarse = GGMLQuantizationType.Q4_0
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":
            table = quantize(np.array(tensor.data), coarse)
            writer.add_tensor(tensor.name, table, raw_dtype=coarse)
        elif tensor.name != "output.weight":
            writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    soft = prompt()
    bake(str(source), {"voice": soft}, tmp_path / "baked.gguf")
    after = tensors(tmp_path / "baked.gguf")
    embeddings, head = after["token_embd.weight"], after["output.weight"]
    assert embeddings.tensor_type == GGMLQuantizationType.F16
    assert head.tensor_type == coarse
    assert np.array_equal(head.data[:VOCAB_SIZE], table)
    assert np.array_equal(embeddings.data[:VOCAB_SIZE], dequantize(table, coarse).astype(np.float16))
    assert np.array_equal(embeddings.data[VOCAB_SIZE:], soft.matrix.astype(np.float16))


def test_a_tensor_that_no_token_can_be_added_to(tmp_path: Path) -> None:
    source = tmp_path / "base.gguf"
    network = tiny("llama", dtype=torch.float32, intermediate_size=VOCAB_SIZE)
    tiny_gguf(source, network=network)
    with pytest.raises(ModelError, match="none can be added"):
        bake(str(source), {"voice": prompt()}, tmp_path / "baked.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


# Bundled models, and llama.cpp's own server ------------------------------------------------------------------


class Case:
    """A bundled model with a soft prompt baked in."""

    def __init__(self, name: str, soft: SoftPrompt, folder: Path) -> None:
        source = files.resolve(name)
        path = files.gguf_file(source)
        assert path is not None
        # A baked model holds nothing.
        self.soft = soft.with_metadata(attention=PLAIN)
        self.path, self.model = path, describe(source, path)
        self.target = folder / f"{name}.gguf"
        self.baked: Baked = bake(name, {"voice": soft}, self.target)


def keeper() -> SoftPrompt:
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts", "keeper.zip")) as path:
        return formats.read(path)


@pytest.fixture(scope="module")
def smollm2_baked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case("smollm2", keeper(), tmp_path_factory.mktemp("baked"))


@pytest.fixture(scope="module")
def gemma_baked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """BOS, and embeddings that are scaled. The soft prompt is the embeddings of words: after it the model does not go astray."""
    source = files.resolve("gemma3-270m")
    path = files.gguf_file(source)
    assert path is not None
    model = describe(source, path)
    table = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "token_embd.weight")
    ids = model.encode("Dear diary, the storm took the boat, and nobody in the house has spoken since Sunday evening.")
    rows = dequantize(table.data[ids], table.tensor_type) * np.float32(model.d_model**0.5)
    metadata = Metadata(base=model.ref, placement="after_bos")
    return Case("gemma3-270m", SoftPrompt(rows.astype(np.float32), metadata), tmp_path_factory.mktemp("baked"))


@pytest.fixture(params=["smollm2_baked", "gemma_baked"])
def case(request: pytest.FixtureRequest) -> Case:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Case)
    return found


@pytest.fixture
def url(case: Case) -> Iterator[str]:
    with llama_server(case.target, 1) as address:
        yield address


@pytest.mark.slow
def test_llama_cpps_own_server_writes_as_we_do_with_the_soft_prompt(case: Case, url: str) -> None:
    """Every token that it writes is the likeliest after the soft prompt here, up to near-ties: llama.cpp rounds the numbers
    between layers to 8 bits, so its ways for few and for many positions differ by up to 0.6 in single logits."""
    asked = {"n_predict": 24, "temperature": 0, "top_k": 1, "cache_prompt": False, "return_tokens": True}
    gaps: dict[str, list[float]] = {"with": [], "without": []}
    with gguf_runner(case.model, case.path, EngineOptions(rows=1), row_cells=256) as runner:
        for text in OPENINGS:
            body = {**asked, "prompt": case.baked.texts["voice"] + text}
            answer = httpx.post(f"{url}/completion", json=body, timeout=900).json()
            read, written = case.model.encode(text), answer["tokens"]
            assert answer["tokens_evaluated"] == len(case.model.bos_ids) + case.soft.n_tokens + len(read)
            for kind, soft in (("with", case.soft), ("without", None)):
                logits_TV = np.asarray(logits_of(runner, soft, [*read, *written], len(written) + 1))[:-1]
                gaps[kind] += (logits_TV.max(axis=1) - logits_TV[np.arange(len(written)), written]).tolist()
    assert max(gaps["with"]) < 0.6
    assert sum(gap > 0 for gap in gaps["with"]) < 0.1 * len(gaps["with"])
    assert max(gaps["without"]) > 2, "without it another text is likelier"


@pytest.mark.slow
def test_its_chat_template_writes_the_tokens(smollm2_baked: Case) -> None:
    turns = {"messages": [{"role": "user", "content": "Hello"}]}
    with llama_server(smollm2_baked.target, 1) as url:
        written = httpx.post(f"{url}/apply-template", json=turns, timeout=60).json()["prompt"]
        none = {**turns, "chat_template_kwargs": {"soft_prompt": ""}}
        without = httpx.post(f"{url}/apply-template", json=none, timeout=60).json()["prompt"]
    assert written == smollm2_baked.baked.texts["voice"] + without
    assert "<|im_start|>user\nHello" in without


@pytest.mark.slow
def test_the_tokens_are_never_written(smollm2_baked: Case) -> None:
    """10,000 tokens at temperature 1.5 from the whole vocabulary, 16 texts at once."""
    body = {
        "prompt": smollm2_baked.baked.texts["voice"],
        "n_predict": 480,
        "temperature": 1.5,
        "samplers": ["temperature"],
        "ignore_eos": True,
        "return_tokens": True,
    }
    with (
        llama_server(smollm2_baked.target, 1) as url,
        ThreadPoolExecutor(16) as pool,
        httpx.Client(timeout=900) as client,
    ):

        def write(seed: int) -> list[int]:
            return list(client.post(f"{url}/completion", json={**body, "seed": seed}).json()["tokens"])

        written = [token for text in pool.map(write, range(21)) for token in text]
    assert len(written) >= 10_000
    assert len(set(written)) > 3_000, "from the whole vocabulary"
    assert max(written) < smollm2_baked.model.vocab_size


@pytest.mark.slow
def test_the_gain_stays(smollm2_baked: Case) -> None:
    """Of the held-out gain after the tokens, at least 98 % of the soft prompt's."""
    case = smollm2_baked
    with resources.as_file(resources.files("sordino").joinpath("data", "keeper", "heldout")) as folder:
        ids = [i for file in sorted(folder.glob("*.txt")) for i in case.model.encode(file.read_text())]
    windows = [ids[at : at + 128] for at in range(0, 8 * 128, 128)]
    described = describe(files.resolve(str(case.target)), case.target)
    voice = described.encode_markup(case.baked.texts["voice"])
    with gguf_runner(case.model, case.path, EngineOptions(rows=1), row_cells=512) as runner:
        none, soft = loss(runner, windows, None, []), loss(runner, windows, case.soft, [])
    with gguf_runner(described, case.target, EngineOptions(rows=1), row_cells=512) as runner:
        behind = loss(runner, windows, None, voice)
    assert none - soft > 0.2
    assert none - behind >= 0.98 * (none - soft)


def loss(runner: Runner, windows: list[list[int]], soft: SoftPrompt | None, voice: list[int]) -> float:
    """Mean of each window's tokens but its first."""
    found = []
    for window in windows:
        logits_TV = logits_of(runner, soft, [*voice, *window], len(window))[:-1]
        found.append(torch.nn.functional.cross_entropy(logits_TV.double(), torch.tensor(window[1:])).item())
    return sum(found) / len(found)


def logits_of(runner: Runner, soft: SoftPrompt | None, ids: list[int], wanted: int) -> torch.Tensor:
    """[wanted, V] of the last positions of a text."""
    runner.open(0, soft, ids)
    assert runner.grow(0, len(ids))
    logits_TV = torch.as_tensor(runner.run([Span(0, ids, wanted)]))
    runner.close(0, ())
    return logits_TV
