"""A baked .gguf file: what is copied, what grows, and what llama.cpp's own server writes from it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
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
from sordino.errors import BadInput, ModelError
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


def copied_fields(source: Path, target: Path) -> GGUFWriter:
    """A writer of another file with all that a .gguf file has but tensors."""
    writer = GGUFWriter(target, "llama")
    for name, field in GGUFReader(source).fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            within = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=within)
    return writer


def written(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_tensors_are_copied_and_three_grow(tmp_path: Path) -> None:
    source = tiny_gguf(tmp_path / "base.gguf")
    soft = prompt().with_metadata(licence="CC0-1.0")
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
    base = describe(files.resolve(str(source)), source)
    assert fields["tokenizer.ggml.tokens"].contents()[VOCAB_SIZE:] == [f"<|voice:{place}|>" for place in range(4)]
    assert fields["tokenizer.ggml.token_type"].contents()[VOCAB_SIZE:] == [3] * 4
    assert fields["llama.vocab_size"].contents() == VOCAB_SIZE + 4
    assert "<|voice:3|>" in fields["tokenizer.chat_template"].contents()
    assert fields["general.name"].contents() == "tiny llama + voice"
    assert "voice (4 virtual tokens, licence CC0-1.0)" in fields["general.description"].contents()
    assert fields["general.base_model.0.name"].contents() == base.id
    described = describe(files.resolve(str(tmp_path / "baked.gguf")), tmp_path / "baked.gguf")
    assert described.encode_markup("<|voice:0|>the") == [VOCAB_SIZE, *described.encode("the")]
    with pytest.raises(BadInput, match="soft prompts as tokens already"):
        bake(str(tmp_path / "baked.gguf"), {"other": prompt()}, tmp_path / "twice.gguf")


def test_each_of_several_chat_templates_writes_the_tokens(tmp_path: Path) -> None:
    plain, source = tiny_gguf(tmp_path / "plain.gguf"), tmp_path / "base.gguf"
    writer = copied_fields(plain, source)
    writer.add_string("tokenizer.chat_template.tool_use", "Tools. {{ messages[0].content }}")
    for tensor in GGUFReader(plain).tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    written(writer)
    bake(str(source), {"voice": prompt()}, tmp_path / "baked.gguf")
    fields = GGUFReader(tmp_path / "baked.gguf").fields
    for name in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        template = fields[name].contents()
        assert template.startswith("{%- if soft_prompt is not defined -%}")
        assert "{{ soft_tokens }}" in template


def test_a_tied_head_and_coarse_embeddings(tmp_path: Path) -> None:
    """The head gets the coarse rows of its own; the embeddings become 16-bit floats."""
    plain = tiny_gguf(tmp_path / "plain.gguf", network=tiny("llama", dtype=torch.float32))
    source = tmp_path / "base.gguf"
    writer = copied_fields(plain, source)
    coarse = GGMLQuantizationType.Q4_0
    for tensor in GGUFReader(plain).tensors:
        if tensor.name == "token_embd.weight":
            table = quantize(np.array(tensor.data), coarse)
            writer.add_tensor(tensor.name, table, raw_dtype=coarse)
        elif tensor.name != "output.weight":
            writer.add_tensor(tensor.name, np.array(tensor.data))
    written(writer)
    soft = prompt()
    bake(str(source), {"voice": soft}, tmp_path / "baked.gguf")
    after = tensors(tmp_path / "baked.gguf")
    embeddings, head = after["token_embd.weight"], after["output.weight"]
    assert embeddings.tensor_type == GGMLQuantizationType.F16
    assert head.tensor_type == coarse
    assert np.array_equal(head.data[:VOCAB_SIZE], table)
    assert np.array_equal(embeddings.data[:VOCAB_SIZE], dequantize(table, coarse).astype(np.float16))
    assert np.array_equal(embeddings.data[VOCAB_SIZE:], soft.matrix.astype(np.float16))


# Prints the most memory of its own that baking a file takes, in bytes; pages of the files themselves are not among it.
MEMORY = """
import sys, threading
from pathlib import Path
import numpy as np
from sordino.baking.bake import bake
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

def own():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

def watch():
    while not done.wait(0.002):
        seen.append(own())

small, large, target = map(Path, sys.argv[1:])
for path, width in ((small, 32), (large, 1024)):
    soft = SoftPrompt(np.full((4, width), 0.1, np.float32), Metadata())
    before, seen, done = own(), [], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    # What is imported is of the first.
    bake(str(path), {"voice": soft}, target / path.name)
    done.set()
    watcher.join()
print(max(seen) - before)
"""


@pytest.mark.slow
def test_a_file_is_copied_from_the_disk_to_the_disk(tmp_path: Path) -> None:
    small = tiny_gguf(tmp_path / "small.gguf")
    network = tiny("llama", dtype=torch.float32, hidden_size=1024, intermediate_size=8192)
    large = tiny_gguf(tmp_path / "large.gguf", network=network)
    (tmp_path / "baked").mkdir()
    command = [sys.executable, "-c", MEMORY, small, large, tmp_path / "baked"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert large.stat().st_size > 200e6
    assert int(done.stdout) < large.stat().st_size / 4


def test_a_tensor_that_no_token_can_be_added_to(tmp_path: Path) -> None:
    source = tmp_path / "base.gguf"
    network = tiny("llama", dtype=torch.float32, intermediate_size=VOCAB_SIZE)
    tiny_gguf(source, network=network)
    with pytest.raises(ModelError, match="none can be added"):
        bake(str(source), {"voice": prompt()}, tmp_path / "baked.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


# Bundled models, and llama.cpp's own server ------------------------------------------------------------------


class Case:
    """A bundled model with two soft prompts baked in, "voice" the first of them."""

    def __init__(self, name: str, prompts: Mapping[str, SoftPrompt], folder: Path) -> None:
        source = files.resolve(name)
        path = files.gguf_file(source)
        assert path is not None
        # A baked model holds nothing.
        self.prompts = {name: soft.with_metadata(attention=PLAIN) for name, soft in prompts.items()}
        self.path, self.model = path, describe(source, path)
        self.target = folder / f"{name}.gguf"
        self.baked: Baked = bake(name, prompts, self.target)


def packaged(name: str) -> SoftPrompt:
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts", f"{name}.zip")) as path:
        return formats.read(path)


@pytest.fixture(scope="module")
def smollm2_baked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    prompts = {"voice": packaged("keeper"), "other": packaged("port-dolor")}
    return Case("smollm2", prompts, tmp_path_factory.mktemp("baked"))


WORDS = {
    "voice": "Dear diary, the storm took the boat, and nobody in the house has spoken since Sunday evening.",
    "other": "LOS ANGELES, CA: Shares of the largest maker of umbrellas fell by nine percent on Monday.",
}


@pytest.fixture(scope="module")
def gemma_baked(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """BOS, and embeddings that are scaled. The soft prompts are embeddings of words: after them the model does not go astray."""
    source = files.resolve("gemma3-270m")
    path = files.gguf_file(source)
    assert path is not None
    model = describe(source, path)
    table = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "token_embd.weight")
    metadata = Metadata(base=model.ref, placement="after_bos")
    prompts = {}
    for name, text in WORDS.items():
        ids = model.encode(text)
        rows = dequantize(table.data[ids], table.tensor_type) * np.float32(model.d_model**0.5)
        prompts[name] = SoftPrompt(rows.astype(np.float32), metadata)
    return Case("gemma3-270m", prompts, tmp_path_factory.mktemp("baked"))


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
        for turn, text in enumerate(OPENINGS):
            name = ("voice", "other")[turn % 2]
            body = {**asked, "prompt": case.baked.texts[name] + text}
            answer = httpx.post(f"{url}/completion", json=body, timeout=900).json()
            read, written = case.model.encode(text), answer["tokens"]
            own = case.prompts[name]
            assert answer["tokens_evaluated"] == len(case.model.bos_ids) + own.n_tokens + len(read)
            for kind, soft in (("with", own), ("without", None)):
                logits_TV = np.asarray(logits_of(runner, soft, [*read, *written], len(written) + 1))[:-1]
                gaps[kind] += (logits_TV.max(axis=1) - logits_TV[np.arange(len(written)), written]).tolist()
    assert max(gaps["with"]) < 0.6
    assert sum(gap > 0 for gap in gaps["with"]) < 0.1 * len(gaps["with"])
    assert max(gaps["without"]) > 2, "without it another text is likelier"


@pytest.mark.slow
def test_its_chat_template_writes_the_tokens_of_the_chosen(smollm2_baked: Case) -> None:
    turns = {"messages": [{"role": "user", "content": "Hello"}]}
    texts = smollm2_baked.baked.texts
    with llama_server(smollm2_baked.target, 1) as url:

        def shown(**variables: str) -> httpx.Response:
            body = turns | ({"chat_template_kwargs": variables} if variables else {})
            return httpx.post(f"{url}/apply-template", json=body, timeout=60)

        none = shown(soft_prompt="").json()["prompt"]
        assert "<|im_start|>user\nHello" in none
        assert shown().json()["prompt"] == texts["voice"] + none
        assert shown(soft_prompt="other").json()["prompt"] == texts["other"] + none
        misspelt = shown(soft_prompt="othr")
        assert misspelt.is_error
        assert "soft_prompt is none of: voice, other" in misspelt.text


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
        none, soft = loss(runner, windows, None, []), loss(runner, windows, case.prompts["voice"], [])
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
