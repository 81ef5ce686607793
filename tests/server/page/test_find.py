"""Find against a running server and real hosts of files: galleries, the stand-in for the Hub, installs with progress."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sordino import formats
from sordino.library.gallery.build import build_site
from tests.hub_repositories import files_of
from tests.hub_server import stand_in, use
from tests.library.gallery.serving import FileHost, file_host
from tests.prompt_files import drop
from tests.server.running import Running, running, voice
from tests.waiting import until


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("find"), with_page=True) as one:
        yield one


@pytest.fixture
def server(started: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Without galleries, and with its first library."""
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    before = {path.name for path in started.folder.iterdir()}
    yield started
    for one in httpx.get(f"{started.url}/ui/find").json()["galleries"]:
        httpx.delete(f"{started.url}/ui/find/galleries/{one['name']}")
    for path in started.folder.glob("*.zip"):
        if path.name not in before:
            path.unlink()


@pytest.fixture
def host(server: Running, tmp_path: Path) -> Iterator[FileHost]:
    """A gallery: one that was made for the server's model, one whose name is taken, a mature one, one of another width."""
    voices = tmp_path / "voices"
    voices.mkdir()
    known = {"licence": "MIT", "heldout": {"nll": {"no_prompt": 3.0, "soft_prompt": 2.5}}}
    sample = {"prompt": "At dusk", "with": "the lamp", "without": "it rained"}
    one = voice(server.base, 5, name="Lighthouse", author="Ines", samples=(sample,), **known)
    formats.write(one, voices / "lighthouse.zip")
    formats.write(voice(server.base, 6, name="Another keeper"), voices / "keeper.zip")
    formats.write(voice(server.base, 7, name="Dark", rating="mature"), voices / "dark.zip")
    drop(voices / "wide.zip")
    build_site(voices, tmp_path / "site", title="Voices")
    with file_host(tmp_path / "site") as files:
        yield files


def add(server: Running, address: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/ui/find/galleries", json={"address": address}, headers=headers, timeout=60)


def found(server: Running) -> dict[str, dict[str, Any]]:
    return {row["source"]: row for row in httpx.get(f"{server.url}/ui/find", timeout=60).json()["found"]}


def start(server: Running, source: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/ui/find/install", json={"source": source, **more}, timeout=60)


def state_of(server: Running, source: str) -> dict[str, Any]:
    installs = httpx.get(f"{server.url}/ui/find/installs", timeout=60).json()["installs"]
    return next(one for one in installs if one["source"] == source)


def ended(server: Running, source: str) -> dict[str, Any]:
    until(lambda: state_of(server, source)["state"] not in ("waiting", "running"))
    return state_of(server, source)


def test_rows_say_what_each_is_and_how_well_it_fits(server: Running, host: FileHost) -> None:
    added = add(server, f"{host.url}/index.html").json()
    assert (added["name"], added["count"], added["changes"]) == ("voices", 4, [])
    rows = found(server)
    one = rows["lighthouse@voices"]
    assert {key: one[key] for key in ("name", "author", "from", "licence", "gain", "fit", "held")} == {
        "name": "Lighthouse", "author": "Ines", "from": "Voices", "licence": "MIT", "gain": 0.5, "fit": "exact", "held": None,
    }  # fmt: skip
    assert one["samples"] == [{"prompt": "At dusk", "with": "the lamp", "without": "it rained"}]
    assert rows["dark@voices"]["rating"] == "mature"
    assert rows["wide@voices"]["fit"] == "no"
    assert "8 wide" in rows["wide@voices"]["unfit"]


def test_an_install_is_in_the_library_and_known_again(server: Running, host: FileHost) -> None:
    add(server, f"{host.url}/gallery.json")
    assert start(server, "lighthouse@voices").status_code == 200
    done = ended(server, "lighthouse@voices")
    assert (done["state"], done["name"], done["new"], done["error"]) == ("done", "lighthouse", True, "")
    assert found(server)["lighthouse@voices"]["held"] == "lighthouse"
    listed = httpx.get(f"{server.url}/v1/soft_prompts").json()["data"]
    assert "lighthouse" in [one["id"] for one in listed]
    assert httpx.delete(f"{server.url}/v1/soft_prompts/lighthouse").status_code == 200
    assert found(server)["lighthouse@voices"]["held"] is None


def test_a_name_that_is_taken_is_replaced_only_on_request(server: Running, host: FileHost) -> None:
    before = (server.folder / "keeper.zip").read_bytes()
    add(server, f"{host.url}/gallery.json")
    start(server, "keeper@voices")
    assert ended(server, "keeper@voices")["code"] == "name_taken"
    assert (server.folder / "keeper.zip").read_bytes() == before
    start(server, "keeper@voices", replace=True)
    assert ended(server, "keeper@voices")["state"] == "done"
    assert formats.read(server.folder / "keeper.zip").metadata.name == "Another keeper"
    (server.folder / "keeper.zip").write_bytes(before)


def test_progress_cancelling_and_going_on(server: Running, host: FileHost) -> None:
    add(server, f"{host.url}/gallery.json")
    path = "/files/lighthouse.zip"
    arrived, released = threading.Event(), threading.Event()
    host.held[path] = (500, arrived, released)
    # What comes behind the cancellation.
    host.cuts[path] = [10]
    start(server, "lighthouse@voices")
    assert arrived.wait(60)
    until(lambda: state_of(server, "lighthouse@voices")["done"])
    one = state_of(server, "lighthouse@voices")
    assert (one["state"], one["done"], one["total"]) == ("running", 500, len(host.content(path) or b""))
    # A second start changes nothing.
    start(server, "lighthouse@voices")
    httpx.post(f"{server.url}/ui/find/installs/cancel", json={"source": "lighthouse@voices"})
    released.set()
    assert ended(server, "lighthouse@voices")["state"] == "cancelled"
    assert not (server.folder / "lighthouse.zip").exists()
    del host.held[path]
    host.asked.clear()
    start(server, "lighthouse@voices")
    assert ended(server, "lighthouse@voices")["state"] == "done"
    assert host.asked[0][1].startswith("bytes=")


def test_a_file_that_changed_is_refused_and_the_gallery_says_so(
    server: Running, host: FileHost, tmp_path: Path
) -> None:
    add(server, f"{host.url}/gallery.json")
    formats.write(voice(server.base, 8, name="Lighthouse"), tmp_path / "voices" / "lighthouse.zip", force=True)
    build_site(tmp_path / "voices", tmp_path / "site", title="Voices")
    start(server, "lighthouse@voices")
    failed = ended(server, "lighthouse@voices")
    assert failed["state"] == "failed"
    assert "listed" in failed["error"]
    again = add(server, f"{host.url}/gallery.json").json()
    assert [line for line in again["changes"] if line.startswith("changed: lighthouse")]
    start(server, "lighthouse@voices")
    assert ended(server, "lighthouse@voices")["state"] == "done"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/etc/passwd", "not an address"),
        ("file:///etc/passwd", "not an address"),
        ("http://files.example/x", "plain http"),
        ("", "address"),
    ],
)
def test_addresses_that_are_refused(server: Running, address: str, reason: str) -> None:
    answer = add(server, address)
    assert answer.status_code in (400, 422)
    assert reason in answer.json()["error"]["message"]


def test_only_a_browser_on_this_machine_leads_the_server_to_it(server: Running, host: FileHost) -> None:
    host.asked.clear()
    answer = add(server, f"{host.url}/gallery.json", **{"X-Forwarded-For": "203.0.113.7"})
    assert "leads to this machine" in answer.json()["error"]["message"]
    assert not host.asked


def test_unknown_names_are_refused(server: Running, host: FileHost) -> None:
    add(server, f"{host.url}/gallery.json")
    for source, status in (("x@voices", 404), ("lighthouse@x", 404), ("lighthouse", 404), ("hf:x", 400)):
        assert start(server, source).status_code == status, source
    assert httpx.delete(f"{server.url}/ui/find/galleries/x").status_code == 404


def test_the_hub_is_searched_and_installed_from(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stand_in() as hub:
        use(hub, tmp_path, monkeypatch)
        one = voice(server.base, 9, name="Letters", description="from the sea", tags=("sea",), rating="mature")
        files = files_of(one, tmp_path / "one")
        hub.add("ines/letters", {name.replace("keeper", "letters"): data for name, data in files.items()})
        rows = httpx.get(f"{server.url}/ui/find/hub", params={"words": "sea"}, timeout=60).json()["found"]
        row = next(row for row in rows if row["source"] == "hf:ines/letters")
        assert (row["name"], row["author"], row["rating"], row["held"]) == ("Letters", "ines", "mature", None)
        assert row["fit"] == "exact"
        assert row["tags"] == ["sea"]
        assert not httpx.get(f"{server.url}/ui/find/hub", params={"words": "desert"}, timeout=60).json()["found"]
        start(server, "hf:ines/letters")
        done = ended(server, "hf:ines/letters")
        assert done["state"] == "done", done
        rows = httpx.get(f"{server.url}/ui/find/hub", timeout=60).json()["found"]
        assert rows[0]["held"] == done["name"]
        hub.fail = (500, {})
        answer = httpx.get(f"{server.url}/ui/find/hub", timeout=60)
        assert answer.status_code == 400
        assert "Hugging Face Hub" in answer.json()["error"]["message"]
