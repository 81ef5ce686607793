"""A zip of 2022 on GPT-J, on a machine that does not hold GPT-J in float32: pickled weights, 8 and 4 bits, KoboldAI's own API.

GPT-J and Pygmalion 6B are 4,096 wide, with 16 heads, rotary positions of 64 channels, 28 layers and 50,400 words. Here it has two
layers of random weights and 8,192 words.
"""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from transformers import GPTJConfig

from sordino.models.base_model import Numbers, weight_bytes
from sordino.models.network_size import empty_network
from sordino.models.weight_formats import FORMATS, OFFLOAD, Format
from tests.server.process import started
from tests.tiny_models import SPECIALS, VOCAB_SIZE, tiny_tokenizer

pytestmark = pytest.mark.slow

SMALL = GPTJConfig(n_layer=2, n_positions=512, vocab_size=8_192)

# Prints the memory that the base model takes, and what it writes without and with the soft prompt. Freed memory that the allocator
# keeps for later is not in use.
USE = """
import ctypes, gc, json, sys
import psutil, torch
# What is imported is not the model's.
import transformers.models.gptj.modeling_gptj
from sordino import formats
from sordino.engine.config import Sampling
from sordino.engine.generate import TextRequest, complete
from sordino.models import base_model, nf4
nf4.bitsandbytes()
process = psutil.Process()
folder, path, kind = sys.argv[1:]
before = process.memory_info().rss
base = base_model.load(folder, device="cpu", dtype="bfloat16", quantise=kind or None)
gc.collect()
if sys.platform == "linux":
    ctypes.CDLL(None).malloc_trim(0)
memory = process.memory_info().rss - before
asked = [TextRequest("You enter the tavern.", prompt, 0) for prompt in (None, formats.read(path))]
print(json.dumps([memory, *complete(base, asked, Sampling(max_tokens=8, temperature=0))]))
"""

# Memory that no file holds, after a pass.
ON_DISK = """
import gc, sys
import torch
import transformers.models.gptj.modeling_gptj
from sordino.models import base_model

def anonymous():
    gc.collect()
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) * 1024

torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
before = anonymous()
base = base_model.load(sys.argv[1], device="cpu", dtype="bfloat16", quantise="offload")
with torch.inference_mode():
    base.network(torch.arange(5, 15)[None])
print(anonymous() - before)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def environment(home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "SORDINO_CACHE": str(home / "cache"),
        "SORDINO_LIBRARY": str(home / "library"),
        "XDG_CONFIG_HOME": str(home / "config"),
    }


@pytest.fixture(scope="module")
def gptj(home: Path) -> Path:
    """The folder as a repository of 2021 has it: pickles of float16, a tokenizer."""
    folder = home / "pygmalion-6b"
    config = copy.deepcopy(SMALL)
    assert (config.n_embd, config.n_head, config.rotary_dim) == (4096, 16, 64)
    network = empty_network(config, where="")
    pattern = (torch.randn((1 << 20) + 7, generator=torch.Generator().manual_seed(0)) / 64).half()
    state = {}
    for place, (name, tensor) in enumerate(network.state_dict().items()):
        # Keys as the queries are would let each word look at itself alone.
        numbers = (
            pattern.roll(place * 54_321).repeat(-(-tensor.numel() // len(pattern)))[: tensor.numel()].view(tensor.shape)
        )
        state[name] = torch.ones_like(numbers) if "ln_" in name and name.endswith("weight") else numbers
    # Only words that the small tokenizer has, and no end.
    state["lm_head.bias"][VOCAB_SIZE:] = -10_000
    state["lm_head.bias"][: len(SPECIALS)] = -10_000
    config.dtype = torch.float16
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="module")
def old_zip(home: Path) -> Path:
    """80 virtual tokens, as KoboldAI's tuner wrote them."""
    (home / "library").mkdir()
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(1).standard_normal((80, 4096)).astype(np.float16) / 64)
    path = home / "library" / "adventure.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensor.npy", stream.getvalue(), compress_type=zipfile.ZIP_LZMA)
        meta = {"name": "Adventure", "author": "Someone", "supported": ["Generic 6B"], "description": "A quest"}
        archive.writestr("meta.json", json.dumps(meta))
    return path


def command(*arguments: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_writes_with_the_old_zip(gptj: Path, old_zip: Path, environment: dict[str, str]) -> None:
    how = ["--model", str(gptj), "--quantise", "int8", "--max-tokens", "8", "--temperature", "0"]
    plain, prompted = (
        command("-m", "sordino", "generate", "You enter the tavern.", *how, *more, environment=environment).strip()
        for more in ([], ["--soft-prompt", str(old_zip)])
    )
    assert plain
    assert prompted
    assert plain != prompted


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_it_is_served_to_programs_of_koboldai(
    gptj: Path, old_zip: Path, environment: dict[str, str], kind: Format
) -> None:
    with started("--model", str(gptj), "--quantise", kind, "--port", "0", env=environment) as process:
        url = process.url()
        listed = httpx.get(f"{url}/api/v1/config/soft_prompts_list").json()
        assert "adventure.zip" in json.dumps(listed)
        chosen = httpx.put(f"{url}/api/v1/config/soft_prompt", json={"value": "adventure.zip"})
        assert chosen.status_code == 200, chosen.text
        said = {"prompt": "You enter the tavern.", "max_length": 8, "max_context_length": 256, "temperature": 0.5}
        answer = httpx.post(f"{url}/api/v1/generate", json=said, timeout=240)
        assert answer.status_code == 200, answer.text
        assert answer.json()["results"][0]["text"]
        page = httpx.get(f"{url}/", follow_redirects=True)
        assert page.status_code == 200


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which memory can be had back")
def test_layers_on_the_disk_take_no_memory(gptj: Path, environment: dict[str, str]) -> None:
    used = int(command("-c", ON_DISK, str(gptj), environment=environment).splitlines()[-1])
    network = empty_network(SMALL, where="")
    assert used == pytest.approx(weight_bytes(network, Numbers(torch.bfloat16, OFFLOAD)), rel=0.15)


@pytest.fixture(scope="module")
def converted(gptj: Path, environment: dict[str, str]) -> Path:
    """`gptj`, after its first use."""
    command("-m", "sordino.models.files", str(gptj), environment=environment)
    return gptj


@pytest.mark.parametrize("kind", [*FORMATS, None])
def test_it_writes_in_each_format_and_the_memory_is_what_was_reckoned(
    converted: Path, old_zip: Path, environment: dict[str, str], kind: Format | None
) -> None:
    said = command("-c", USE, str(converted), str(old_zip), kind or "", environment=environment)
    used, plain, prompted = json.loads(said.splitlines()[-1])
    network = empty_network(SMALL, where="")
    assert used == pytest.approx(weight_bytes(network, Numbers(torch.bfloat16, kind)), rel=0.15)
    assert plain
    assert prompted
    assert plain != prompted
