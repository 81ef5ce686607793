"""A baked folder in vLLM's own server, which has nothing of ours: the same greedy text as plain transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sordino import formats
from sordino.baking.bake import bake
from tests.engine.test_torch_runner import agreed
from tests.programs.environment import environment
from tests.programs.vllm_server import vllm_server

NEW = 24
TURNS = [{"role": "user", "content": "What did you see from the window today?"}]


@dataclass(frozen=True)
class BakedFolder:
    """texts: what to put in front of a text, by soft prompt."""

    path: Path
    texts: Mapping[str, str]
    tokenizer: Any
    network: Any

    def written(self, ids: list[int]) -> tuple[list[int], list[float]]:
        """Greedy tokens of plain transformers, and at each the gap between the two likeliest."""
        new = self.network.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        gaps = [float(top[0] - top[1]) for top in (logits[0].double().topk(2).values for logits in new.logits)]
        return new.sequences[0].tolist()[len(ids) :], gaps

    def chat(self, **variables: str) -> list[int]:
        shown = self.tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=False, **variables)
        return list(self.tokenizer(shown, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> BakedFolder:
    path = tmp_path_factory.mktemp("baked") / "smollm2"
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as folder:
        prompts = {name: formats.read(folder / f"{name}.zip") for name in ("keeper", "port-dolor")}
    texts = bake("smollm2", prompts, path).texts
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return BakedFolder(path, texts, AutoTokenizer.from_pretrained(path), network)


@pytest.mark.slow
def test_its_server_writes_what_transformers_does(baked: BakedFolder, tmp_path: Path) -> None:
    expected, said = [], []
    # None of our plugins.
    alone = {"VLLM_PLUGINS": ""}
    with (
        vllm_server(
            environment("vllm"), baked.path, tmp_path / "vllm.log", "--served-model-name", "baked", env=alone
        ) as url,
        httpx.Client(base_url=url, timeout=240) as client,
    ):

        def asked(route: str, **fields: object) -> list[int]:
            body = {"model": "baked", "max_tokens": NEW, "temperature": 0, "return_token_ids": True, **fields}
            answer = client.post(f"/v1/{route}", json=body)
            assert answer.status_code == 200, answer.text
            return list(answer.json()["choices"][0]["token_ids"])

        for opening in ("It rained all day, and", "The sea"):
            for text in ("", *baked.texts.values()):
                said.append(asked("completions", prompt=text + opening))
                expected.append(baked.written(baked.tokenizer(text + opening)["input_ids"]))
        # The first by itself, another by name, and none.
        for variables in ({}, {"soft_prompt": "port-dolor"}, {"soft_prompt": ""}):
            said.append(asked("chat/completions", messages=TURNS, chat_template_kwargs=variables))
            expected.append(baked.written(baked.chat(**variables)))
        misspelt = {"model": "baked", "messages": TURNS, "chat_template_kwargs": {"soft_prompt": "port-dolour"}}
        assert client.post("/v1/chat/completions", json=misspelt).is_error
    equal = [agreed(own, *theirs) for own, theirs in zip(said, expected, strict=True)]
    # Texts that part at a near tie are counted: a fault would part nearly all.
    assert equal.count(False) <= 1
    # The soft prompts are heard.
    assert len(set(map(tuple, said))) == len(said)
