"""The library over HTTP, the server's default, health and metrics."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from sordino import formats
from sordino.errors import ConfigError
from sordino.library.entry import Entry
from sordino.library.library import Library
from sordino.prompts.mixture import Mixture
from sordino.server import prompts as prompts_module
from sordino.server.prompts import ServedPrompts
from tests.server.running import Running, running, voice
from tests.tiny_models import tiny_base
from tests.waiting import WAIT, until


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as made:
        yield made


def listed(live: Running) -> dict[str, dict[str, object]]:
    return {card["id"]: card for card in httpx.get(f"{live.url}/v1/soft_prompts").json()["data"]}


def test_everything_is_listed_with_how_well_it_fits(live: Running) -> None:
    cards = listed(live)
    assert {name: card.get("fit", "broken") for name, card in cards.items()} == {
        "keeper": "exact",
        "clerk": "exact",
        "wide": "no",
        "broken": "broken",
    }
    assert cards["keeper"]["name"] == "The keeper"
    assert cards["keeper"]["tags"] == ["log"]
    assert "33 wide" in str(cards["wide"]["fit_reason"])
    assert "not a soft prompt file" in str(cards["broken"]["error"])


def test_a_dropped_file_appears_by_itself(live: Running) -> None:
    assert "new" not in listed(live)
    formats.write(voice(live.base, 5), live.folder / "new.zip")
    # Named at once; listed within the second that a list is kept.
    assert httpx.get(f"{live.url}/v1/models/tiny-llama:new").status_code == 200
    assert "new" in listed(live)


def test_upload_list_delete(live: Running, tmp_path: Path) -> None:
    formats.write(voice(live.base, 6, name="Uploaded"), tmp_path / "u.safetensors", to="safetensors")
    content = (tmp_path / "u.safetensors").read_bytes()

    def upload(file: str, **form: object) -> httpx.Response:
        return httpx.post(f"{live.url}/v1/soft_prompts", files={"file": (file, content)}, data=form)

    card = upload("my voice (1).safetensors").json()
    assert (card["id"], card["fit"], card["name"]) == ("my voice-1", "exact", "Uploaded")
    assert formats.detect(live.folder / "my voice-1.zip") == "kobold"
    taken = upload("again.safetensors", name="keeper")
    assert (taken.status_code, taken.json()["error"]["code"]) == (400, "name_taken")
    assert upload("again.safetensors", name="keeper", replace=True).json()["name"] == "Uploaded"
    gone = httpx.delete(f"{live.url}/v1/soft_prompts/my voice-1").json()
    assert gone == {"id": "my voice-1", "object": "soft_prompt", "deleted": True}
    assert "my voice-1" not in listed(live)
    assert (live.folder / ".trash" / "my voice-1.zip").exists()


@pytest.mark.parametrize("name", ["../evil.zip", "..\\evil.zip", "a/b.zip", "con.zip", ".hidden.zip", ""])
def test_names_that_lead_elsewhere_are_refused(live: Running, tmp_path: Path, name: str) -> None:
    formats.write(voice(live.base, 6), tmp_path / "u.zip")
    before = sorted(path for path in live.folder.rglob("*"))
    content = (tmp_path / "u.zip").read_bytes()
    for files, form in (({"file": (name, content)}, {}), ({"file": ("ok.zip", content)}, {"name": name or "nul\0"})):
        answer = httpx.post(f"{live.url}/v1/soft_prompts", files=files, data=form)
        assert answer.status_code in (400, 413), answer.text
    assert sorted(path for path in live.folder.rglob("*")) == before


def test_a_name_that_was_given_is_the_field_that_is_wrong(live: Running, tmp_path: Path) -> None:
    formats.write(voice(live.base, 6), tmp_path / "u.zip")
    files = {"file": ("u.zip", (tmp_path / "u.zip").read_bytes())}
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files=files, data={"name": "a/b"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("con.zip", files["file"][1])})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_a_file_whose_name_is_no_unicode_harms_nothing(live: Running) -> None:
    (live.folder / os.fsdecode(b"old\xe9.zip")).write_bytes((live.folder / "keeper.zip").read_bytes())
    file = "old\\xe9.zip"
    card = next(card for card in listed(live).values() if card["file"] == file)
    model = httpx.get(f"{live.url}/v1/models").json()["data"][0]["id"]
    assert f"{model}:{card['id']}" in {card["id"] for card in httpx.get(f"{live.url}/v1/models").json()["data"]}
    assert {"value": file} in httpx.get(f"{live.url}/api/v1/config/soft_prompts_list").json()["values"]
    assert httpx.put(f"{live.url}/api/v1/config/soft_prompt", json={"value": file}).json() == {}
    assert httpx.get(f"{live.url}/api/v1/config/soft_prompt").json() == {"value": file}
    asked = {"model": f"{model}:{card['id']}", "prompt": "a", "max_tokens": 1}
    assert httpx.post(f"{live.url}/v1/completions", json=asked).status_code == 200


def test_uploads_that_are_no_soft_prompt_are_refused(live: Running) -> None:
    for content in (b"", b"PK\x03\x04", b"\x80\x04cos\nsystem\n(S'true'\ntR."):
        answer = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("evil.zip", content)})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    assert "evil" not in listed(live)


def test_the_default_is_set_shown_and_remembered(live: Running, tmp_path: Path) -> None:
    load, unload = f"{live.url}/v1/soft_prompt/load", f"{live.url}/v1/soft_prompt/unload"
    assert httpx.post(load, json={"soft_prompt_name": "keeper.zip"}).json() == {"default": "keeper"}
    assert [name for name, card in listed(live).items() if card.get("default")] == ["keeper"]
    for wrong, status in (("nobody", 404), ("wide", 400), ("broken", 400)):
        answer = httpx.post(load, json={"soft_prompt_name": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, "soft_prompt_name")
    assert live.serving.prompts.default == "keeper"
    # Another server, later, of the same model.
    again = ServedPrompts(live.base, live.serving.prompts.library, tmp_path / "defaults.json")
    assert again.default == "keeper"
    (live.folder / "keeper.zip").unlink()
    assert ServedPrompts(live.base, live.serving.prompts.library, tmp_path / "defaults.json").default is None
    assert httpx.post(unload).json() == {"default": None}
    assert json.loads((tmp_path / "defaults.json").read_text()) == {live.base.fingerprint: None}


def test_a_damaged_memory_is_no_reason_to_fail(live: Running, tmp_path: Path) -> None:
    for content in (b"", b"[]", b'{"x": 5}', b"\xff", json.dumps({live.base.fingerprint: 7}).encode()):
        (tmp_path / "d.json").write_bytes(content)
        voices = ServedPrompts(live.base, live.serving.prompts.library, tmp_path / "d.json")
        assert voices.default is None
        voices.set_default("clerk")
        assert ServedPrompts(live.base, live.serving.prompts.library, tmp_path / "d.json").default == "clerk"


def test_health_and_metrics(live: Running) -> None:
    health = httpx.get(f"{live.url}/health")
    assert health.json() == {"status": "ok", "model": "tiny-llama", "running": 0, "waiting": 0}
    secret = "the secret of the keeper"
    for _ in range(2):
        ask = {"model": "tiny-llama:keeper", "prompt": secret, "max_tokens": 3}
        assert httpx.post(f"{live.url}/v1/completions", json=ask).status_code == 200
    page = httpx.get(f"{live.url}/metrics").text
    values = dict(re.findall(r"^(sordino_\S+) (\S+)$", page, re.MULTILINE))
    assert float(values['sordino_soft_prompt_requests_total{soft_prompt="keeper"}']) == 2
    assert float(values["sordino_prefix_cache_hits"]) == 1
    assert float(values["sordino_prefix_cache_misses"]) == 1
    assert 1 <= float(values['sordino_tokens_total{kind="written"}']) <= 6
    assert float(values["sordino_first_token_seconds_count"]) == 2
    assert secret not in page


def test_a_line_is_logged_for_each_request_and_no_text(live: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sordino.requests")
    ask = {"model": "tiny-llama:keeper", "prompt": "the secret", "max_tokens": 3}
    httpx.post(f"{live.url}/v1/completions", json=ask)
    httpx.delete(f"{live.url}/v1/soft_prompts/clerk")
    httpx.get(f"{live.url}/secret")

    def lines_of() -> list[dict[str, object]]:
        return [json.loads(record.message) for record in caplog.records if record.name == "sordino.requests"]

    # The line comes after the answer.
    until(lambda: len(lines_of()) >= 3)
    lines = lines_of()
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/completions", 200),
        ("DELETE", "/v1/soft_prompts/{name}", 200),
        ("GET", "none", 404),
    ]
    assert "secret" not in caplog.text
    assert "clerk" not in caplog.text


def test_the_engines_death_is_seen_in_health(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(live.serving.backend._engine.runner, "run", broken)
    ask = {"model": "tiny-llama", "prompt": "a", "max_tokens": 3}
    assert httpx.post(f"{live.url}/v1/completions", json=ask).status_code == 503
    assert httpx.get(f"{live.url}/health").status_code == 503
    assert httpx.post(f"{live.url}/v1/completions", json=ask).status_code == 503


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/completions", {"model": "tiny-llama:broken", "prompt": "a"}),
        ("POST", "/v1/soft_prompt/load", {"soft_prompt_name": "broken"}),
        ("GET", "/v1/soft_prompts", None),
        ("DELETE", "/v1/soft_prompts/nothing", None),
    ],
)
def test_no_answer_tells_where_the_library_lies(
    live: Running, tmp_path: Path, method: str, path: str, body: dict[str, str] | None
) -> None:
    assert str(tmp_path) not in httpx.request(method, f"{live.url}{path}", json=body).text


def test_a_broken_upload_is_told_without_the_servers_folders(live: Running) -> None:
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("x.zip", b"junk")})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("x.zip: not a soft prompt file")


def test_an_unknown_field_of_an_upload_is_refused_by_name(live: Running) -> None:
    files = {"file": ("u.zip", (live.folder / "keeper.zip").read_bytes())}
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files=files, data={"rename": "other"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "rename")
    assert "other" not in listed(live)


def test_a_field_that_is_given_twice_is_refused_by_name(live: Running) -> None:
    content = (live.folder / "keeper.zip").read_bytes()
    files = [("file", ("one.zip", content)), ("file", ("two.zip", content))]
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
    again = {"name": ["three", "four"]}
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files=files[:1], data=again)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "name")
    assert not {"one", "two", "three", "four"} & set(listed(live))


def test_refused_uploads_advise_fields_of_the_form(live: Running) -> None:
    def told(name: str, content: bytes) -> str:
        answer = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("u.zip", content)}, data={"name": name})
        assert answer.status_code == 400
        message: str = answer.json()["error"]["message"]
        assert "--name" not in message
        assert "--replace" not in message
        return message

    other = (live.folder / "clerk.zip").read_bytes()
    assert "`replace`: true puts this one in its place, `name` gives it another" in told("keeper", other)
    assert "choose another (`name`)" in told("con", other)
    several = io.BytesIO()
    np.save(several, np.ones((2, 3, live.base.d_model), np.float32))
    assert "`sordino install --index`" in told("several", several.getvalue())


def npy(live: Running, rows: int, seed: int = 0) -> bytes:
    held = io.BytesIO()
    np.save(held, np.random.default_rng(seed).standard_normal((rows, live.base.d_model)).astype(np.float32))
    return held.getvalue()


def test_a_file_that_says_no_name_is_called_as_it_is_put_in(live: Running) -> None:
    for form, name in (({}, "grandfather"), ({"name": "uncle"}, "uncle")):
        files = {"file": ("grandfather.npy", npy(live, 3))}
        card = httpx.post(f"{live.url}/v1/soft_prompts", files=files, data=form).json()
        assert (card["id"], card["name"]) == (name, name)


def test_an_upload_of_another_kind_is_told_how_to_come(live: Running) -> None:
    content = (live.folder / "keeper.zip").read_bytes()
    for kind in ("application/x-www-form-urlencoded", "application/zip", "application/json"):
        answer = httpx.post(f"{live.url}/v1/soft_prompts", content=content, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")
        assert "curl -F file=@voice.zip" in answer.json()["error"]["message"]


@pytest.mark.parametrize("rows", [3, 20_000], ids=["kept in memory while it comes", "kept on the disk"])
def test_no_room_for_temporary_files_is_said_as_that(live: Running, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("a.npy", npy(live, rows))}, timeout=30)
    assert answer.status_code == 507, answer.text
    assert "No space left on device" in answer.json()["error"]["message"]
    assert "temporary files" in answer.json()["error"]["message"]
    assert "a" not in listed(live)


def test_of_uploads_at_once_with_one_name_one_comes_in(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `replace` nothing is replaced, also where all found the name free."""
    gate = threading.Barrier(4)
    write = formats.write_any

    def together(*given: object, **named: object) -> object:
        gate.wait(WAIT)
        return write(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("sordino.library.library.formats.write_any", together)
    answers: list[httpx.Response] = []

    def upload(seed: int) -> None:
        files = {"file": ("twin.npy", npy(live, 3, seed))}
        answers.append(httpx.post(f"{live.url}/v1/soft_prompts", files=files, timeout=30))

    threads = [threading.Thread(target=upload, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    assert {answer.json()["error"]["param"] for answer in answers if answer.status_code == 400} == {"file"}
    assert {path.name for path in live.folder.iterdir() if path.name.startswith(("twin", "."))} == {"twin.zip"}


def test_what_another_server_took_away_is_gone_and_no_fault_of_the_disk(
    live: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Library([live.folder])
    named = live.serving.prompts.named

    def taken_meanwhile(name: str) -> object:
        found = named(name)
        other.remove(name)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(live.serving.prompts, "named", taken_meanwhile)
        answer = httpx.delete(f"{live.url}/v1/soft_prompts/clerk")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "name")
    assert "gone" in answer.json()["error"]["message"]
    add = Library.add

    def and_taken(library: Library, *given: object, **said: object) -> Entry:
        entry = add(library, *given, **said)  # type: ignore[arg-type]
        other.remove(entry.name)
        return entry

    monkeypatch.setattr(Library, "add", and_taken)
    answer = httpx.post(f"{live.url}/v1/soft_prompts", files={"file": ("short.npy", npy(live, 3))})
    assert (answer.status_code, answer.json()["id"]) == (200, "short")


def test_another_file_does_not_become_the_default_when_its_own_is_gone(tmp_path: Path) -> None:
    """Of two files of one name the second gets a number, and the bare name once the first is gone."""
    base = tiny_base("llama", dtype=torch.float32)
    both = Mixture((voice(base, 1), voice(base, 2)), np.array([0.5, 0.5]))
    formats.write_mixture(both, tmp_path / "race.mix.zip")
    formats.write(voice(base, 3), tmp_path / "race.zip")
    voices = ServedPrompts(base, Library([tmp_path]), tmp_path / "defaults.json")
    assert [entry.entry.name for entry in voices.all()] == ["race", "race-2"]
    voices.set_default("race")
    assert voices.default == "race"
    gone = voices.named("race").entry.path
    gone.unlink()
    voices.refresh()
    assert [entry.entry.name for entry in voices.all()] == ["race"]
    assert voices.default is None


def test_two_servers_remember_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One must not write what it read before the other wrote."""
    bases = [tiny_base(kind, dtype=torch.float32) for kind in ("llama", "gpt2")]
    for base in bases:
        formats.write(voice(base, 1), tmp_path / f"{base.name}.zip")
    place = tmp_path / "defaults.json"
    servers = [ServedPrompts(base, Library([tmp_path]), place) for base in bases]
    write = prompts_module.write_bytes

    def slow(path: Path, data: bytes) -> None:
        time.sleep(0.3)
        write(path, data)

    monkeypatch.setattr(prompts_module, "write_bytes", slow)
    threads = [threading.Thread(target=one.set_default, args=(one.base.name,)) for one in servers if one.base]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ServedPrompts(base, Library([tmp_path]), place).default for base in bases] == [base.name for base in bases]


def test_what_is_the_servers_trouble_is_no_fields_fault(tmp_path: Path) -> None:
    with running(tmp_path, idle=True) as live:
        answer = httpx.post(f"{live.url}/v1/soft_prompt/load", json={"soft_prompt_name": "keeper"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (503, None)
        answer = httpx.put(f"{live.url}/api/v1/config/soft_prompt", json={"value": "keeper.zip"})
        assert (answer.status_code, answer.json()["detail"]["type"]) == (503, "service_unavailable")


def test_a_default_that_the_backend_does_not_support_is_told_once(tmp_path: Path) -> None:
    """Under another runner it may work: it stays remembered."""
    with running(tmp_path) as live:
        httpx.post(f"{live.url}/v1/soft_prompt/load", json={"soft_prompt_name": "keeper"})
        library, remembered = live.serving.prompts.library, tmp_path / "defaults.json"

        def refuse(prompt: object) -> None:
            raise ConfigError("not supported by this runner", where="hold")

        prompts = ServedPrompts(live.base, library, remembered, check=refuse)
        prompts.check_default()
        assert prompts.default is None
        assert prompts.left_out == "the default soft prompt keeper is not used here: hold: not supported by this runner"
        again = ServedPrompts(live.base, library, remembered)
        again.check_default()
        assert (again.default, again.left_out) == ("keeper", "")


def test_collections_leave_out_what_was_there_before() -> None:
    """A full collection looks through every object, and holds up all requests meanwhile."""
    code = (
        "import gc, json\n"
        "from sordino.server.memory import leave_out_of_collections\n"
        "held = [[number] for number in range(300_000)]\n"
        "cycle = []; cycle.append(cycle); del cycle\n"
        "leave_out_of_collections()\n"
        "frozen = gc.get_freeze_count()\n"
        "assert frozen > 300_000 and len(gc.get_objects()) < 1_000\n"
        "full = []\n"
        "gc.callbacks.append(lambda phase, about: about['generation'] == 2 and full.append(phase))\n"
        "json.loads('[' + '{},' * 400_000 + '{}]')\n"
        "assert not full, full\n"
        "del held\n"
        "leave_out_of_collections()\n"
        "assert gc.get_freeze_count() < frozen - 290_000\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
