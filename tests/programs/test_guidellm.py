"""guidellm, which measures servers: its requests are answered, to the last token that it asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from sordino.models import files
from tests.programs.environment import environment, ran
from tests.server.process import started

pytestmark = pytest.mark.slow

REQUESTS, TOKENS = 4, 12


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("guidellm")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as prompts:
        flags = ("--model", "smollm2", "--port", "0", "--library", str(prompts), "--no-ui")
        with started(*flags, env={"XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("served"))}) as process:
            yield process.url()


@pytest.mark.parametrize("route", ["/v1/completions", "/v1/chat/completions"])
def test_it_measures_a_soft_prompt(python: Path, served: str, tmp_path: Path, route: str) -> None:
    tokenizer = files.prepare(files.resolve("smollm2")).folder
    ran(
        *(python, "-m", "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={served},model=smollm2:keeper,request_format={route}"),
        *("--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=16,output_tokens={TOKENS}"),
        *("--tokenizer", f"kind=hf_auto,model={tokenizer}"),
        *("--output", f"kind=json,path={tmp_path / 'found.json'}"),
        env={"HF_HOME": str(tmp_path / "home")},
        seconds=300,
    )
    (measured,) = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert measured["requests"]["errored"] == []
    # Its processes report to each other: the end of the last one may come after its own end.
    assert REQUESTS - 1 <= len(measured["requests"]["successful"]) <= REQUESTS
    assert {one["output_tokens"] for one in measured["requests"]["successful"]} == {TOKENS}
