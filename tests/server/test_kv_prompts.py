"""A KV prompt wherever a soft prompt is: OpenAI's routes, KoboldAI's, the library's, the page's."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sordino import formats
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.mixture import Mixture
from tests.prompts.kv_of import kv_of
from tests.server.running import TEXT, Running, running, voice


def deep(live: Running, seed: int = 1, **said: Any) -> KVPrompt:
    """It writes what `voice` of this seed writes."""
    return kv_of(live.base, voice(live.base, seed, **said))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("kv"), with_page=True) as made:
        formats.write(deep(made, name="Deep"), made.folder / "deep.kv.zip")
        mixed = Mixture((deep(made), voice(made.base, 2)), np.ones(2))
        formats.write_mixture(mixed, made.folder / "both.mix.zip")
        plain = Mixture((voice(made.base, 1), voice(made.base, 2)), np.ones(2))
        formats.write_mixture(plain, made.folder / "plain.mix.zip")
        yield made


def text(live: Running, soft: str) -> str:
    body = {"model": "tiny-llama", "soft_prompt": soft, "prompt": TEXT, "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{live.url}/v1/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    said: str = answer.json()["choices"][0]["text"]
    return said


def test_it_writes_what_the_embedding_prompt_writes_that_it_was_taken_from(live: Running) -> None:
    assert text(live, "deep") == text(live, "keeper")
    assert text(live, "both") == text(live, "plain")
    assert "tiny-llama:deep" in [one["id"] for one in httpx.get(f"{live.url}/v1/models").json()["data"]]


def test_kobold_clients_see_it_in_their_list_and_load_it(live: Running) -> None:
    api = f"{live.url}/api/v1"
    names = [one["value"] for one in httpx.get(f"{api}/config/soft_prompts_list").json()["values"]]
    assert "deep.kv.zip" in names
    ask = {"prompt": TEXT, "max_length": 12, "temperature": 0, "rep_pen": 1, "top_p": 1, "soft_prompt": "deep.kv.zip"}
    answer = httpx.post(f"{api}/generate", json=ask, timeout=30)
    assert answer.json()["results"][0]["text"] == text(live, "deep")


def test_it_is_uploaded_listed_and_deleted(live: Running, tmp_path: Path) -> None:
    deep(live, 5).save(tmp_path / "u.kv.zip")
    files = {"file": ("uploaded.kv.zip", (tmp_path / "u.kv.zip").read_bytes())}
    card = httpx.post(f"{live.url}/v1/soft_prompts", files=files).json()
    assert (card["id"], card["file"], card["kind"], card["fit"]) == (
        "uploaded",
        "uploaded.kv.zip",
        "KV prompt",
        "exact",
    )
    cards = {one["id"]: one for one in httpx.get(f"{live.url}/v1/soft_prompts").json()["data"]}
    assert (cards["keeper"]["kind"], cards["both"]["kind"]) == ("embedding prompt", "mixture")
    assert httpx.delete(f"{live.url}/v1/soft_prompts/uploaded").json()["deleted"]


def test_one_of_another_shape_is_listed_as_not_fitting(live: Running) -> None:
    prompt = deep(live)
    shape = prompt.shape
    narrow = replace(prompt, shape=KVShape(shape.layers, shape.heads * 2, shape.channels // 2))
    formats.write(narrow, live.folder / "narrow.kv.zip")
    try:
        cards = {one["id"]: one for one in httpx.get(f"{live.url}/v1/soft_prompts").json()["data"]}
        assert cards["narrow"]["fit"] == "no"
        assert str(narrow.shape) in cards["narrow"]["fit_reason"]
    finally:
        (live.folder / "narrow.kv.zip").unlink()


def test_the_page_shows_and_exports_it_and_refuses_what_needs_a_matrix(live: Running) -> None:
    path = f"{live.url}/ui/prompts/deep"
    details = httpx.get(path).json()
    shape = deep(live).shape
    assert (details["kind"], details["format"]) == ("KV prompt", "kv")
    assert details["kv"] == {"layers": shape.layers, "heads": shape.heads, "channels": shape.channels}
    for part in ("words", "inside"):
        refusal = httpx.get(f"{path}/{part}")
        assert refusal.status_code == 400
        assert "a KV prompt has no matrix" in refusal.json()["error"]["message"]
    assert httpx.get(f"{path}/export", params={"to": "kv"}).content == (live.folder / "deep.kv.zip").read_bytes()
    assert httpx.get(f"{path}/export", params={"to": "npy"}).status_code == 400
    assert httpx.get(f"{live.url}/ui/prompts/keeper/export", params={"to": "kv"}).status_code == 400
    for to, kind in (("peft", "PREFIX_TUNING"), ("cartridge", "CARTRIDGE")):
        answer = httpx.get(f"{path}/export", params={"to": to})
        assert answer.status_code == 200, answer.text
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            (config,) = (name for name in archive.namelist() if name.endswith("adapter_config.json"))
            assert kind.encode() in archive.read(config)
