"""koboldapi, a client of KoboldCpp from PyPI: what it asks for, answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import httpx
import pytest

from tests.programs.environment import environment, ran
from tests.server.process import started

pytestmark = pytest.mark.slow

TEXT = "The keeper wrote in the log that"
SCRIPT = """
import json, sys
from koboldapi import KoboldAPI, KoboldAPICore

api = KoboldAPI(sys.argv[1], temperature=0)
text = sys.argv[2]
ids = api.tokenize(text)
written = api.generate(text, max_length=12, logprobs=True)
logprobs = api.get_last_logprobs()
print(json.dumps({
    "info": KoboldAPICore(sys.argv[1]).get_model_info(),
    "round trip": api.detokenize(ids),
    "counted": api.count_tokens(text) == {"count": len(ids), "tokens": ids},
    "written": written,
    "tokens": "".join(logprobs["tokens"]),
    "streamed": api.generate_sync(text, max_length=12),
    "remembered": api.generate(text, max_length=12, memory="It rained all day. "),
    "banned": api.generate(text, max_length=12, banned_tokens=[" the"]),
    "stats": sorted(api.get_performance_stats()),
    "aborted": api.abort_generation(),
    "checked": api.check_generation(),
}))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as prompts:
        shutil.copytree(prompts, folder / "library")
    flags = ("--model", "smollm2", "--port", "0", "--library", str(folder / "library"), "--soft-prompt", "keeper")
    with started(*flags, "--no-ui", env={"XDG_CONFIG_HOME": str(folder)}) as process:
        yield process.url()


def test_its_calls_are_answered_behind_the_servers_default(served: str, tmp_path: Path) -> None:
    # It brings readers of pictures and documents, which it imports with itself.
    python = environment("koboldapi")
    (tmp_path / "script.py").write_text(SCRIPT)
    found = json.loads(ran(python, tmp_path / "script.py", served, TEXT).splitlines()[-1])

    def ours(prompt: str) -> str:
        body = {"model": "smollm2:keeper", "prompt": prompt, "max_tokens": 12, "temperature": 0}
        answer = httpx.post(f"{served}/v1/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["text"])

    assert found["info"]["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found["info"]["version"] == {"result": "KoboldCpp", "version": "1.90"}
    assert found["info"]["context_length"] == 8192
    assert found["round trip"] == TEXT
    assert found["counted"]
    assert found["written"] == found["streamed"] == found["tokens"] == ours(TEXT)
    assert found["remembered"] == ours(f"It rained all day. {TEXT}")
    assert " the" in found["written"]
    assert " the" not in found["banned"]
    assert {"last_seed", "last_token_count", "queue", "idle"} <= set(found["stats"])
    assert (found["aborted"], found["checked"]) == (False, "")
