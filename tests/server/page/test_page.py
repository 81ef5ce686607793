"""The page's routes against a running server: state, writing, stories, models, soft prompts, the key."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from sordino import formats
from sordino.errors import StorageError
from sordino.models.bundled import DEFAULT_MODEL
from sordino.prompts.fit import Fit
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata
from sordino.server.errors import Refused
from sordino.server.page import state as state_module
from sordino.server.page.state import _table_row
from sordino.server.page.stories import Stories, StoryUpdate
from sordino.server.page.training_settings import RunSettings, flags_of
from sordino.server.prompts import ServedPrompt
from sordino.training.queue import Jobs
from tests.server.running import Running, running
from tests.server.running import voice as voice_of
from tests.tiny_models import tiny_base
from tests.waiting import WAIT, until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("page"), with_page=True) as one:
        yield one


def live(server: Running, **more: Any) -> ClientConnection:
    return connect(server.url.replace("http", "ws") + "/ui/live", **more)


def said(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of this kind."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=WAIT))
        if message["is"] == kind:
            return message
        assert message["is"] != "error", message


def write(number: int = 1, **more: Any) -> dict[str, Any]:
    settings = {"max_tokens": 5, "temperature": 0, "repetition_penalty": 1, "top_p": 1}
    return {
        "do": "write",
        "id": number,
        "text": {"story": "The keeper"},
        "soft_prompts": [""],
        "settings": settings,
        **more,
    }


def ask(server: Running, message: dict[str, Any]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{server.url}/ui/ask", json=message, timeout=30)
    return [json.loads(line) for line in answer.text.splitlines()]


def test_the_page_and_its_files_come_with_a_policy(server: Running) -> None:
    page = httpx.get(server.url)
    assert "<title>Sordino</title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    # A Colab notebook shows it in a frame.
    assert "frame-ancestors 'self' https://*.googleusercontent.com" in page.headers["content-security-policy"]
    assert httpx.get(f"{server.url}/ui/static/main.js").status_code == 200
    assert httpx.get(f"{server.url}/ui/static/../page.py").status_code == 404


def test_nothing_in_the_page_comes_from_elsewhere(server: Running) -> None:
    static = Path(__file__).resolve().parents[3] / "src/sordino/server/page/static"
    # The name of a format, and an address in instructions that people read.
    known = ("http://www.w3.org/2000/svg", "--cors-origin https://lite.koboldai.net")
    for path in static.iterdir():
        text = path.read_text(encoding="utf-8")
        for one in known:
            text = text.replace(one, "")
        assert "http://" not in text, path.name
        assert "https://" not in text, path.name
        assert "innerHTML" not in text, path.name


def test_a_tab_hears_the_state_at_once_and_when_it_changes(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    look, looks = state_module.page_state, []

    def counted(connection: HTTPConnection) -> str:
        seen = look(connection)
        looks.append(json.loads(seen)["default"])
        return seen

    monkeypatch.setattr(state_module, "page_state", counted)
    with live(server) as socket:
        state = said(socket, "state")
        assert state["model"]["name"] == server.serving.model
        assert {one["name"] for one in state["prompts"]} == {"keeper", "clerk"}
        assert state["default"] is None
        # Whoever changes it: here a client of KoboldAI.
        httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": "keeper.zip"})
        looks.clear()
        assert said(socket, "state")["default"] == "keeper"
        # The next look sees it; one may have been under way.
        assert looks.count(None) <= 1
        assert state_module._POLL_SECONDS < 1
        httpx.put(f"{server.url}/api/v1/config/soft_prompt", json={"value": ""})
        assert said(socket, "state")["default"] is None


@pytest.mark.parametrize("voice", ["", "keeper"])
def test_what_is_written_is_what_the_api_writes(server: Running, voice: str) -> None:
    with live(server) as socket:
        socket.send(json.dumps(write(soft_prompts=[voice])))
        text = ""
        while (message := json.loads(socket.recv(timeout=WAIT)))["is"] != "done":
            text += message["text"] if message["is"] == "text" else ""
    body = {
        "model": server.serving.model,
        "prompt": "The keeper",
        "max_tokens": 5,
        "temperature": 0,
        "soft_prompt": voice or None,
    }
    answer = httpx.post(
        f"{server.url}/v1/completions", json={k: v for k, v in body.items() if v is not None}, timeout=30
    )
    assert text == answer.json()["choices"][0]["text"]
    assert "".join(one["text"] for one in ask(server, write(soft_prompts=[voice])) if one["is"] == "text") == text


@pytest.mark.parametrize(
    "samplers",
    [
        {"dry_multiplier": 2},
        {"xtc_probability": 1, "xtc_threshold": 0.001},
        {"dynatemp_range": 1},
        {"smoothing_factor": 0.5},
    ],
)
def test_todays_samplers_are_those_of_the_routes(server: Running, samplers: dict[str, float]) -> None:
    settings = {"max_tokens": 10, "temperature": 1.2, "repetition_penalty": 1, "top_p": 1, **samplers}
    told = ask(server, write(settings=settings, seed=3))
    body = {"model": "tiny-llama", "prompt": "The keeper", "seed": 3, **settings}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).json()
    assert "".join(one["text"] for one in told if one["is"] == "text") == answer["choices"][0]["text"]


def test_columns_are_written_side_by_side(server: Running) -> None:
    told = ask(server, write(soft_prompts=["", "keeper", "clerk"]))
    assert {one["column"] for one in told if one["is"] == "end"} == {0, 1, 2}
    assert told[-1]["is"] == "done"


def test_stopping_ends_it(server: Running) -> None:
    with live(server) as socket:
        socket.send(json.dumps(write(7, settings={"max_tokens": 200, "temperature": 0})))
        said(socket, "text")
        socket.send(json.dumps({"do": "stop", "id": 7}))
        assert said(socket, "done")["id"] == 7
    until(lambda: httpx.get(f"{server.url}/health").json()["running"] == 0)


def test_a_tab_that_closes_frees_its_rows(server: Running) -> None:
    with live(server) as socket:
        socket.send(json.dumps(write(settings={"max_tokens": 200, "temperature": 0})))
        said(socket, "text")
    until(lambda: httpx.get(f"{server.url}/health").json()["running"] == 0)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (write(soft_prompts=["nobody"]), "no soft prompt has this name"),
        (write(soft_prompts=["wide"]), "does not fit"),
        (write(soft_prompts=["broken"]), "broken.zip"),
        (write(settings={"max_tokens": 10**9}), "max_tokens"),
        (write(settings={"max_tokens": 5, "temperature": -1}), "temperature"),
        (write(settings={"colour": 1}), "colour"),
        (write(text={"chat": []}), ""),
        (write(text={"story": "half a pair: \ud800"}), "not Unicode"),
        (write(text={"chat": [{"role": "user", "content": "\ud800"}]}), ""),
        ({"do": "dance", "id": 1}, "do"),
        ({"id": 1}, "do"),
    ],
)
def test_what_cannot_be_is_said(server: Running, message: dict[str, Any], words: str) -> None:
    with live(server) as socket:
        socket.send(json.dumps(message))
        error = said(socket, "error")
        assert error["id"] == 1
        assert words in error["message"]
        # And the tab lives on.
        socket.send(json.dumps(write(2)))
        assert said(socket, "done")["id"] == 2


@pytest.mark.parametrize(
    "raw", ["no json", "[" * 100_000, "[]", "3", '{"do": "write"}', '{"do": "write", "id": "one"}']
)
def test_what_is_no_message_is_said_too(server: Running, raw: str) -> None:
    with live(server) as socket:
        socket.send(raw)
        assert said(socket, "error")["message"]
        socket.send(json.dumps(write(2)))
        assert said(socket, "done")["id"] == 2


def test_how_much_of_the_context_is_used(server: Running) -> None:
    [told] = ask(
        server, {"do": "measure", "id": 1, "text": {"story": "The keeper"}, "soft_prompt": "keeper", "max_tokens": 5}
    )
    assert told["soft"] == 4
    assert told["used"] == len(server.base.encode("The keeper")) + len(server.base.bos_ids)
    assert told["dropped"] == 0
    long = "word " * 5000
    [told] = ask(server, {"do": "measure", "id": 1, "text": {"story": long}, "max_tokens": 5})
    assert 0 < told["dropped"] < len(long)
    assert told["used"] + told["room"] <= told["total"]


# Stories -------------------------------------------------------------------------------------------------------------------


def test_a_story_is_kept_and_who_comes_later_is_told(server: Running) -> None:
    url = f"{server.url}/ui/stories/abc-1"
    first = httpx.put(url, json={"title": "T", "text": "<b>once</b>", "revision": 0}).json()
    assert httpx.get(url).json()["text"] == "<b>once</b>"
    second = httpx.put(url, json={"title": "T", "text": "twice", "revision": first["revision"]}).json()
    late = httpx.put(url, json={"title": "T", "text": "late", "revision": first["revision"]})
    assert late.status_code == 409
    assert "another tab" in late.json()["error"]["message"]
    assert httpx.get(url).json()["text"] == "twice"
    over = httpx.put(url, json={"title": "T", "text": "late", "revision": first["revision"], "overwrite": True}).json()
    assert over["revision"] > second["revision"]
    assert [one["id"] for one in httpx.get(f"{server.url}/ui/stories").json()] == ["abc-1"]
    httpx.delete(url)
    assert httpx.get(url).status_code == 404


def test_a_page_is_not_told_of_its_own_save(server: Running) -> None:
    """A reload does not hear what became of the last save: the next one comes from the revision before it."""
    url = f"{server.url}/ui/stories/own-1"
    first = httpx.put(url, json={"text": "one", "writer": "page"}).json()
    httpx.put(url, json={"text": "two", "revision": first["revision"], "writer": "page"})
    again = {"text": "three", "revision": first["revision"], "writer": "reloaded", "after": "page"}
    assert httpx.put(url, json=again).status_code == 200
    # Another's save has come in between, or it was never that page's.
    assert httpx.put(url, json=again).status_code == 409
    assert (
        httpx.put(url, json={"text": "", "revision": first["revision"], "writer": "x", "after": ""}).status_code == 409
    )
    assert httpx.get(url).json()["text"] == "three"
    httpx.delete(url)


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stories = Stories(tmp_path / "file" / "stories")
    with pytest.raises(StorageError):
        stories.put("a", StoryUpdate(text="x"))
    with pytest.raises(StorageError):
        stories.remove("a")


def test_a_story_with_half_a_character_is_kept(server: Running) -> None:
    url = f"{server.url}/ui/stories/half"
    body = json.dumps({"text": "a\ud800b", "revision": 0})
    assert httpx.put(url, content=body, headers={"Content-Type": "application/json"}).status_code == 200
    assert httpx.get(url).json()["text"] == "a?b"
    httpx.delete(url)


NESTED = [b"[" * depth + b"]" * depth for depth in (10, 100, 150, 190, 200, 250, 500, 900, 5000)]


@pytest.mark.parametrize("value", [*NESTED, b"NaN", b"1e999", b"9" * 4200, b'"\\ud800"', b"-0.0", b"{}"], ids=range(15))
def test_what_was_said_to_be_kept_can_be_read(server: Running, value: bytes) -> None:
    url = f"{server.url}/ui/stories/deep"
    body = b'{"overwrite": true, "text": "x", "character": {"a": ' + value + b"}}"
    put = httpx.put(url, content=body, headers={"Content-Type": "application/json"})
    got = httpx.get(url)
    listed = [story["id"] for story in httpx.get(f"{server.url}/ui/stories").json()]
    httpx.delete(url)
    if put.status_code == 200:
        assert (got.status_code, "deep" in listed) == (200, True)
        assert got.json()["character"] == {"a": json.loads(value.replace(b"\\ud800", b"?"))}
    else:
        assert (put.status_code, got.status_code, "deep" in listed) == (400, 404, False), put.text


def test_a_novel_is_kept(server: Running) -> None:
    url = f"{server.url}/ui/stories/novel"
    novel = "It rained. " * 600_000
    assert httpx.put(url, json={"text": novel}, timeout=30).status_code == 200
    assert httpx.get(url, timeout=30).json()["text"] == novel
    httpx.delete(url)


@pytest.mark.parametrize("name", ["..%2Fx", "a.b", "x" * 65, "%00"])
def test_a_story_has_no_other_names(server: Running, name: str) -> None:
    assert httpx.put(f"{server.url}/ui/stories/{name}", json={"text": ""}).status_code in (400, 404, 405)


# Soft prompts --------------------------------------------------------------------------------------------------------------


def test_details_words_and_formats(server: Running) -> None:
    url = f"{server.url}/ui/prompts/keeper"
    told = httpx.get(url).json()
    assert told["name"] == "The keeper"
    assert told["n_tokens"] == 4
    words = httpx.get(f"{url}/words").json()["words"]
    assert [len(row) for row in words] == [5] * 4
    for to in ("kobold", "mkultra", "npy", "safetensors"):
        answer = httpx.get(f"{url}/export", params={"to": to})
        assert answer.status_code == 200
        assert "keeper" in answer.headers["content-disposition"]
    refused = httpx.get(f"{url}/export", params={"to": "peft"})
    assert (refused.status_code == 200) == (server.base.placement == "start")


def test_inside_norms_and_similarity_come_at_once(server: Running) -> None:
    said = httpx.get(f"{server.url}/ui/prompts/keeper/inside").json()
    assert len(said["norms"]) == len(said["percentiles"]) == 4
    assert said["vocabulary"]["p5"] < said["vocabulary"]["p50"] < said["vocabulary"]["p95"]
    assert [one["id"] for one in said["similar"]] == ["clerk"]
    assert -1 <= said["similar"][0]["cosine"] <= 1
    for name, status in (("wide", 400), ("broken", 400), ("nobody", 404)):
        for method in ("GET", "POST"):
            assert httpx.request(method, f"{server.url}/ui/prompts/{name}/inside").status_code == status, name


def test_inside_importance_and_attention_are_measured_when_asked_for(server: Running) -> None:
    url = f"{server.url}/ui/prompts/keeper/inside"
    said = httpx.post(url, timeout=60).json()
    assert len(said["importance"]["left_out"]) == 4
    assert [len(row) for row in said["attention"]["by_layer_and_token"]] == [4] * 3
    assert "lighthouse keeper" in said["findings"][0]
    assert httpx.post(url, timeout=60).json() == said


def test_metadata_is_changed_in_the_file(server: Running) -> None:
    url = f"{server.url}/ui/prompts/clerk"
    before = httpx.get(url).json()
    now = httpx.patch(url, json={"name": "<script>", "tags": ["a", " "], "rating": "mature"}).json()
    assert (now["name"], now["tags"], now["rating"]) == ("<script>", ["a"], "mature")
    assert now["content_hash"] == before["content_hash"]
    assert httpx.patch(url, json={"matrix": 1}).status_code == 400
    assert httpx.patch(url, json={"name": "two\nlines"}).status_code == 400
    assert httpx.patch(f"{server.url}/ui/prompts/broken", json={"name": "x"}).status_code == 400
    httpx.patch(url, json={"name": "The clerk"})


def test_a_row_has_a_sample_and_what_was_measured(server: Running) -> None:
    told = httpx.get(f"{server.url}/ui/prompts").json()
    assert told["folders"] == [str(server.folder.resolve())]
    rows = {row["id"]: row for row in told["prompts"]}
    assert (rows["keeper"]["fit"], rows["keeper"]["sample"], rows["keeper"]["heldout"]) == ("exact", {}, {})
    assert "unfit" not in rows["keeper"]
    name = server.serving.model
    assert rows["wide"]["unfit"] == f"Made for a model 33 wide (the file does not name it); {name} is 32 wide."
    assert rows["wide"]["model"] is None
    assert "error" in rows["broken"]


def test_what_is_removed_can_be_put_back(server: Running) -> None:
    url = f"{server.url}/ui/prompts"
    trashed = httpx.delete(f"{url}/clerk").json()["trash"]
    assert httpx.get(f"{url}/clerk").status_code == 404
    assert httpx.post(f"{url}/restore", json={"trash": trashed}).json() == {"id": "clerk"}
    assert httpx.get(f"{url}/clerk").status_code == 200
    gone = httpx.post(f"{url}/restore", json={"trash": trashed})
    assert (gone.status_code, "the trash has no file" in gone.json()["error"]["message"]) == (404, True)


@pytest.mark.parametrize(
    "content", [b"PK nothing", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"\x93NUMPX", b"\xff\xfe", b"\x00" * 9, b""]
)
def test_why_an_upload_is_refused_is_in_words_and_not_in_pythons(server: Running, content: bytes) -> None:
    answer = httpx.post(f"{server.url}/v1/soft_prompts", files={"file": ("x.zip", content)})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "b'" not in message, message
    assert 'b"' not in message, message


# The model -----------------------------------------------------------------------------------------------------------------


def test_a_tab_hears_that_a_file_says_something_else_about_itself(server: Running) -> None:
    with live(server) as socket:
        before = said(socket, "state")["library"]
        for changes in (
            {"author": "a clerk"},
            {"tags": ["desk"]},
            {"description": "of a clerk"},
            {"rating": "explicit"},
        ):
            httpx.patch(f"{server.url}/ui/prompts/clerk", json=changes).raise_for_status()
            now = said(socket, "state")["library"]
            assert now != before
            before = now


def test_a_tab_hears_of_a_mixtures_new_weights_and_of_how_files_fit_another_model(server: Running) -> None:
    path = server.folder / "pair.mix.zip"
    pair = Mixture((voice_of(server.base, 1), voice_of(server.base, 2)), np.array([1.0, 3.0]))
    try:
        with live(server) as socket:
            states = [said(socket, "state")["library"]]
            for mixture in (pair, pair.with_weights([3.0, 1.0])):
                formats.write_mixture(mixture, path, force=True)
                states.append(said(socket, "state")["library"])
            assert len(set(states)) == 3
    finally:
        path.unlink()
    entry = server.serving.prompts.named("clerk").entry
    assert len({_table_row(ServedPrompt(entry, fit)) for fit in (None, Fit("exact", ""), Fit("unknown", ""))}) == 3


def test_without_a_model_the_page_and_the_library_are_there(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True, idle=True) as server:
        with live(server) as socket:
            assert said(socket, "state")["model"] is None
            socket.send(json.dumps(write()))
            assert "no model" in said(socket, "error")["message"]
        assert httpx.get(f"{server.url}/health").json()["model"] is None
        assert httpx.get(f"{server.url}/v1/models").json()["data"] == []
        assert httpx.get(f"{server.url}/api/v1/model").json() == {"result": "ReadOnly"}
        cards = httpx.get(f"{server.url}/v1/soft_prompts").json()["data"]
        assert {card["id"] for card in cards} == {"keeper", "clerk", "wide", "broken"}
        refused = httpx.post(f"{server.url}/v1/completions", json={"model": "x", "prompt": "y"})
        assert refused.status_code == 503
        assert "no model" in refused.json()["error"]["message"]
        assert httpx.post(f"{server.url}/api/v1/generate", json={"prompt": "y"}).status_code == 503
        assert httpx.get(f"{server.url}/metrics").status_code == 200


def settled(server: Running, seconds: float = WAIT) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        told: dict[str, Any] = httpx.get(f"{server.url}/ui/models").json()
        if told["loading"] is None:
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


def test_unloading_and_loading_again(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-model"
    base = tiny_base("llama", dtype=torch.float32)
    base.network.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    with running(tmp_path, others={str(folder): base}, with_page=True) as server:
        httpx.post(f"{server.url}/ui/models/unload", json={})
        assert httpx.get(f"{server.url}/health").json()["model"] is None
        httpx.post(f"{server.url}/ui/models", json={"name": str(folder)})
        told = settled(server)
        assert told["error"] == ""
        assert told["current"] is not None
        assert any(choice["name"] == str(folder) and choice["kind"] == "recent" for choice in told["choices"])
        text = ask(server, write())
        assert text[-1]["is"] == "done"


def test_loading_is_cancelled(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-model"
    base = tiny_base("llama", dtype=torch.float32)
    base.network.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    with running(tmp_path, others={str(folder): base}, with_page=True, idle=True) as server:
        told = httpx.post(f"{server.url}/ui/models", json={"name": str(folder)}).json()
        assert told["loading"]["name"] == str(folder)
        # One at a time.
        assert httpx.post(f"{server.url}/ui/models", json={"name": str(folder)}).status_code == 409
        httpx.post(f"{server.url}/ui/models/cancel", json={})
        told = settled(server)
        assert (told["current"], told["error"]) == (None, "")
        assert not any(choice["kind"] == "recent" for choice in told["choices"])
        # And again, not cancelled.
        httpx.post(f"{server.url}/ui/models", json={"name": str(folder)})
        assert settled(server)["current"] is not None


def test_a_model_that_is_not_there_is_refused(server: Running) -> None:
    refused = httpx.post(f"{server.url}/ui/models", json={"name": "/nowhere/at/all"})
    assert refused.status_code == 400
    assert "no such base model" in refused.json()["error"]["message"]
    # Looked for by the process that would fetch it.
    assert httpx.post(f"{server.url}/ui/models", json={"name": "smollm3"}).status_code == 200
    assert "smollm3" in settled(server)["error"]
    assert httpx.get(f"{server.url}/ui/models").json()["current"] == server.serving.model


# The key -------------------------------------------------------------------------------------------------------------------


def test_with_a_key_nothing_answers_without_it(tmp_path: Path) -> None:
    with running(tmp_path, with_page=True, api_key="secret key") as server:
        assert httpx.get(server.url).status_code == 200
        for path in (
            "/ui/state",
            "/ui/stories",
            "/ui/starters",
            "/ui/prompts",
            "/ui/models",
            "/ui/jobs",
            "/ui/clients",
            "/ui/prompts/keeper",
        ):
            assert httpx.get(server.url + path).status_code == 401, path
        assert httpx.post(f"{server.url}/ui/ask", json=write()).status_code == 401
        with pytest.raises(InvalidStatus), live(server):
            pass
        assert httpx.post(f"{server.url}/ui/login", json={"key": "wrong"}).status_code == 401
        with httpx.Client() as browser:
            answer = browser.post(f"{server.url}/ui/login", json={"key": "secret key"})
            assert "httponly" in answer.headers["set-cookie"].lower()
            assert "samesite=strict" in answer.headers["set-cookie"].lower()
            assert "secret" not in answer.headers["set-cookie"]
            assert browser.get(f"{server.url}/ui/state").status_code == 200
            cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        with live(server, additional_headers={"Cookie": cookie}) as socket:
            assert said(socket, "state")["model"]


def test_pages_of_others_may_not_open_a_socket(server: Running) -> None:
    with pytest.raises(InvalidStatus), live(server, origin="http://evil.example"):
        pass


def test_a_mixture_is_shown_and_written_with_the_tabs_weights(server: Running) -> None:
    parts = (voice_of(server.base, 1, name="The keeper"), voice_of(server.base, 2, name="The clerk"))
    both = Mixture(parts, np.array([0.25, 0.75]), metadata=Metadata(name="Both", base=server.base.ref))
    path = server.folder / "both.mix.zip"
    formats.write_mixture(both, path)
    try:
        httpx.get(f"{server.url}/v1/models/{server.serving.model}:both")
        told = httpx.get(f"{server.url}/ui/prompts/both").json()
        assert told["mixture"]["rule"] == "sequence"
        assert told["mixture"]["gated"] is False
        assert told["mixture"]["components"][1] == {"name": "The clerk", "n_tokens": 4, "weight": 0.75}
        assert httpx.get(f"{server.url}/ui/prompts/keeper").json()["mixture"] is None
        assert "mixture" in httpx.get(f"{server.url}/ui/prompts/both/words").json()["error"]["message"]
        answer = httpx.get(f"{server.url}/ui/prompts/both/export", params={"to": "mixture"})
        assert (answer.status_code, answer.content) == (200, path.read_bytes())
        for name, to in (("both", "npy"), ("keeper", "mixture")):
            assert httpx.get(f"{server.url}/ui/prompts/{name}/export", params={"to": to}).status_code == 400
        asked = write(soft_prompts=["both", "clerk", "both"], weights={"both": [0, 2]})
        columns = ["", "", ""]
        for one in ask(server, asked):
            assert one["is"] != "error", one
            if one["is"] == "text":
                columns[one["column"]] += one["text"]
        assert columns[0] == columns[1] == columns[2]
        (error,) = ask(server, write(soft_prompts=["keeper"], weights={"keeper": [1]}))
        assert "weights: these are for mixtures" in error["message"]
        (error,) = ask(server, write(soft_prompts=["both"], weights={"both": [1]}))
        assert "these are not weights" in error["message"]
        edited = httpx.patch(f"{server.url}/ui/prompts/both", json={"author": "A"}).json()
        assert (edited["author"], len(edited["mixture"]["components"])) == ("A", 2)
    finally:
        path.unlink()


def test_a_run_does_not_start_from_a_mixture(server: Running) -> None:
    pair = Mixture((voice_of(server.base, 1), voice_of(server.base, 2)), np.ones(2))
    path = server.folder / "start.mix.zip"
    formats.write_mixture(pair, path)
    try:
        request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(serving=server.serving)))
        with pytest.raises(Refused, match="this is a mixture"):
            flags_of(request, Jobs(path.parent), RunSettings(start_from="start"))
    finally:
        path.unlink()


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_what_no_process_can_be_given_is_refused(server: Running, text: str) -> None:
    run = httpx.post(f"{server.url}/ui/texts", files=[("files", ("a.txt", b"text"))]).json()
    settings = {"name": text}, {"sample_text": text}, {"init": f"text:{text}"}, {"start_from": text}
    asked = [*({"settings": one} for one in settings), {"model": text}]
    posted = [(f"jobs/{run['id']}/{what}", one) for what in ("look", "train") for one in asked]
    for path, body in [*posted, ("models", {"name": text})]:
        content = json.dumps(body)
        answer = httpx.post(f"{server.url}/ui/{path}", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (path, body, answer.text)
    assert httpx.get(f"{server.url}/ui/jobs/{run['id']}").json()["state"] == "draft"


def test_an_error_that_nobody_expected_is_logged_with_where_it_happened(
    server: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("sordino.server.page.loading._Attempt.prepare", broken)
    assert httpx.post(f"{server.url}/ui/models", json={"name": "smollm2"}).status_code == 200
    assert settled(server)["error"].endswith("because of an error in the server: see its log")
    assert ["ZeroDivisionError" in str(one.exc_text or one.exc_info) for one in caplog.records] == [True]


def test_the_form_has_a_field_for_every_setting(server: Running) -> None:
    form = httpx.get(f"{server.url}/ui/training-form").json()
    fields = [*form["run"], *form["about"]]
    assert {field["name"] for field in fields} | {"name", "start_from"} == set(RunSettings.model_fields)
    assert form["model"] == DEFAULT_MODEL
    assert all(field["label"] and field["help"] for field in fields)


def test_a_setting_of_nought_reaches_the_run(server: Running) -> None:
    request: Any = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(serving=server.serving)))
    settings = RunSettings(patience=0, warmup=0.0, seed=0, find_lr=False, lr=None)
    flags = flags_of(request, Jobs(server.folder), settings)
    assert flags == ["--name=voice", "--warmup=0.0", "--patience=0", "--seed=0"]


def test_models_to_choose_from_come_with_what_decides(server: Running) -> None:
    told = httpx.get(f"{server.url}/ui/models").json()
    choices = {choice["name"]: choice for choice in told["choices"]}
    assert list(choices)[:2] == ["smollm2", "gemma3-270m"]
    large, small = choices["mistralai/Mistral-7B-Instruct-v0.3"], choices["HuggingFaceTB/SmolLM2-360M-Instruct"]
    assert (small["kind"], small["title"], small["licence"]) == ("hub", "SmolLM2 360M", "Apache-2.0")
    assert small["needed"] < large["needed"]
    assert large["fits"] == (large["needed"] <= told["memory"]["total"])
    assert large["download"] > 14e9
    assert large["arrived"] == 0


def test_what_a_download_does_is_said_in_bytes(
    server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And a cancelled one ends the processes that it began, which would go on downloading."""
    child = tmp_path / "child"
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        'echo \'{"line": "fetching it"}\'\n'
        "echo noise of a library\n"
        'echo \'{"done": 31000000, "total": 93000000}\'\n'
        f"sleep 600 & echo $! > {child}\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr("sordino.server.page.loading.sys.executable", str(program))
    httpx.post(f"{server.url}/ui/models", json={"name": "smollm2"}).raise_for_status()
    deadline = time.monotonic() + WAIT
    while (loading := httpx.get(f"{server.url}/ui/models").json()["loading"])["total"] is None:
        assert time.monotonic() < deadline, loading
        time.sleep(0.05)
    assert loading == {"name": "smollm2", "line": "downloading, 33% of 93 MB", "done": 31_000_000, "total": 93_000_000}
    until(lambda: child.is_file() and child.read_text().strip())
    httpx.post(f"{server.url}/ui/models/cancel", json={})
    assert settled(server)["error"] == ""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(child.read_text())).wait(WAIT)


def test_memory_needed_is_said_beside_what_is_free(server: Running) -> None:
    told = httpx.get(f"{server.url}/ui/models").json()
    needed = {choice["name"]: choice["needed"] for choice in told["choices"]}
    # 135 million numbers of four bytes, and something beside them.
    assert needed["smollm2"] > 4 * 135_000_000
    assert told["free"] > 0
