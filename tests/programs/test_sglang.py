"""sglang's bench_serving, which measures servers: its requests are answered, to the last token that it asks for.

Of a release that installs without GPU libraries.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import httpx
import pytest

from sordino.models import files
from tests.programs.environment import environment, ran
from tests.server.process import started

pytestmark = pytest.mark.slow

REQUESTS, TOKENS = 4, 12


def written(served: str) -> float:
    """New tokens so far."""
    found = re.search(r'sordino_tokens_total\{kind="written"\} (\S+)', httpx.get(f"{served}/metrics").text)
    return float(found[1]) if found else 0.0


def test_it_measures_a_soft_prompt(tmp_path: Path) -> None:
    python = environment("sglang")
    tokenizer = files.prepare(files.resolve("smollm2")).folder
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as prompts:
        flags = ("--model", "smollm2", "--port", "0", "--library", str(prompts), "--no-ui")
        with started(*flags, env={"XDG_CONFIG_HOME": str(tmp_path)}) as process:
            served = process.url()
            before = written(served)
            ran(
                *(python, "-m", "sglang.bench_serving", "--backend", "sglang-oai", "--base-url", served),
                *("--model", "smollm2:keeper", "--tokenizer", tokenizer, "--dataset-name", "random-ids"),
                *("--num-prompts", REQUESTS, "--random-input-len", 16, "--random-output-len", TOKENS),
                *("--random-range-ratio", 1, "--max-concurrency", 2, "--disable-tqdm", "--output-details"),
                *("--output-file", tmp_path / "found.json"),
                env={"HF_HOME": str(tmp_path / "home")},
                seconds=300,
            )
            # One more request warms the server up.
            assert written(served) - before == (REQUESTS + 1) * TOKENS
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["completed"], found["errors"]) == (REQUESTS, [""] * REQUESTS)
    assert found["output_lens"] == [TOKENS] * REQUESTS
    assert all(found["generated_texts"])
