"""Each backend through the same checks; and the one of the tests behind the real server and page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from sordino.engine.backend import Backend
from sordino.engine.config import EngineOptions
from sordino.engine.runners.build import embedded, gguf_runner, torch_runner
from sordino.models import files
from sordino.models.description import describe
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.engine.backend_conformance import CHECKS, fails_alone_with_a_prompt_of_another_width
from tests.engine.toy_backend import ToyBackend
from tests.server.running import running
from tests.tiny_models import tiny_base, tiny_gguf

OPTIONS = EngineOptions(rows=4, kv_memory=64, prefix_memory=1)


@contextmanager
def of_the_engine(folder: Path) -> Iterator[Backend]:
    base = tiny_base("llama")
    yield embedded(torch_runner(base, OPTIONS), OPTIONS)


@contextmanager
def of_llama_cpp(folder: Path) -> Iterator[Backend]:
    path = tiny_gguf(folder / "tiny.gguf")
    model = describe(files.resolve(str(path)), path)
    with gguf_runner(model, path, OPTIONS) as runner:
        yield embedded(runner, OPTIONS)


@contextmanager
def of_an_encoder_decoder(folder: Path) -> Iterator[Backend]:
    base = tiny_base("t5")
    yield embedded(torch_runner(base, OPTIONS), OPTIONS)


@contextmanager
def toy(folder: Path) -> Iterator[Backend]:
    yield ToyBackend(tiny_base("llama"))


Maker = Callable[[Path], AbstractContextManager[Backend]]
MAKERS: tuple[Maker, ...] = (of_the_engine, of_llama_cpp, of_an_encoder_decoder, toy)


def prompt(*, wider: int = 0) -> SoftPrompt:
    base = tiny_base("llama")
    matrix = np.random.default_rng(1).standard_normal((3, base.d_model + wider)).astype(np.float32)
    return SoftPrompt(matrix, Metadata(placement=base.placement))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", MAKERS)
def test_a_backend_does_what_it_owes(make: Maker, check: Callable[[Backend, SoftPrompt], None], tmp_path: Path) -> None:
    with make(tmp_path) as backend:
        backend.start()
        try:
            check(backend, prompt())
        finally:
            backend.stop(finish=False, seconds=10)


@pytest.mark.parametrize("make", MAKERS)
def test_a_prompt_of_another_width_fails_alone(make: Maker, tmp_path: Path) -> None:
    with make(tmp_path) as backend:
        backend.start()
        try:
            fails_alone_with_a_prompt_of_another_width(backend, prompt(wider=1))
        finally:
            backend.stop(finish=False, seconds=10)


def test_the_server_and_the_page_run_on_any_backend(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True, backend=ToyBackend) as live, httpx.Client(base_url=live.url) as client:
        asked = {"model": "sordino", "prompt": "the sea", "max_tokens": 5, "seed": 1}
        models = client.get("/v1/models").json()["data"]
        names = [model["id"] for model in models]
        plain = client.post("/v1/completions", json={**asked, "model": names[0]})
        assert plain.status_code == 200, plain.text
        assert plain.json()["choices"][0]["finish_reason"] in ("stop", "length")
        refused = client.post("/v1/completions", json={**asked, "model": names[0], "logprobs": 1})
        assert refused.status_code == 400
        assert "toy does not support log probabilities" in refused.json()["error"]["message"]
        kobold = client.post("/api/v1/generate", json={"prompt": "the sea", "max_length": 5})
        assert kobold.status_code == 200, kobold.text
        assert client.get("/health").json()["status"] == "ok"
        state = client.get("/ui/state").json()
        assert state["model"]["runner"] == "toy"
        inside = client.post("/ui/prompts/keeper/inside")
        assert inside.status_code == 501
        assert "toy does not show its attention" in inside.text
        assert "sordino_running" in client.get("/metrics").text
