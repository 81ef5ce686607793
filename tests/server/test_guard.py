"""Who may ask: host names, keys, sizes, pages of other addresses."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from sordino.server import guard
from sordino.server.serving import ServerLimits
from tests.server.running import Running, running, send_half

ASK = {"model": "tiny-llama", "prompt": "a", "max_tokens": 1}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(
        tmp_path_factory.mktemp("guard"),
        api_key="sesame",
        allowed_hosts=["writer.lan"],
        origins=["https://page.example"],
        limits=ServerLimits(body=5000, upload=20_000, wrong_key_seconds=0.001),
    ) as made:
        yield made


def ask(live: Running, path: str = "/v1/models", **headers: str) -> httpx.Response:
    # As bytes: a header may hold what is not ASCII.
    said = {"Authorization": "Bearer sesame", **headers}
    return httpx.get(f"{live.url}{path}", headers={key: value.encode() for key, value in said.items()})


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:5000", "127.0.0.1:81", "192.168.1.5", "[::1]:80", "writer.lan:9"]
)
def test_numbers_and_names_that_were_allowed_are_answered(live: Running, host: str) -> None:
    assert ask(live, Host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5000", "localhost.evil.example", "127.0.0.1.evil.example", ""]
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/openapi.json", "/metrics"])
def test_other_names_are_not(live: Running, host: str, path: str) -> None:
    """A page whose own name points to 127.0.0.1 gets nothing, from no route."""
    answer = ask(live, path, Host=host)
    assert answer.status_code == 403
    assert "--allowed-host" in answer.text


@pytest.mark.parametrize(
    "said", ["", "Bearer", "Bearer wrong", "Bearer sesame2", "Basic sesame", "sesame", "Bearer sésame"]
)
def test_every_route_wants_the_key(live: Running, said: str) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        answer = ask(live, path, Authorization=said)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sesame" not in answer.text


def test_the_key_opens_and_health_needs_none(live: Running) -> None:
    assert ask(live).status_code == 200
    assert ask(live, Authorization="", **{"X-API-Key": "sesame"}).status_code == 200
    assert httpx.get(f"{live.url}/health").json()["status"] == "ok"


def test_large_bodies_are_refused_before_they_are_read(live: Running) -> None:
    headers = {"Authorization": "Bearer sesame"}
    large = {**ASK, "prompt": "a" * 6000}
    answer = httpx.post(f"{live.url}/v1/completions", json=large, headers=headers)
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        413,
        "the request is too large: at most 5000 bytes",
    )
    # Without a length, in parts.
    body = (b'{"prompt": "' + b"a" * 100 for _ in range(100))
    assert httpx.post(f"{live.url}/v1/completions", content=body, headers=headers).status_code == 413
    files = {"file": ("v.zip", b"a" * 6000)}
    assert httpx.post(f"{live.url}/v1/soft_prompts", files=files, headers=headers).status_code == 400
    files = {"file": ("v.zip", b"a" * 30_000)}
    assert httpx.post(f"{live.url}/v1/soft_prompts", files=files, headers=headers).status_code == 413


def test_pages_of_other_addresses_are_told_no(live: Running) -> None:
    good, bad = ask(live, Origin="https://page.example"), ask(live, Origin="https://other.example")
    assert good.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in bad.headers


def test_a_listed_page_can_read_that_its_key_is_wrong(live: Running) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    good, bad = (ask(live, Origin=page, **wrong) for page in ("https://page.example", "https://other.example"))
    assert good.status_code == bad.status_code == 401
    assert good.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in bad.headers


def test_a_browser_may_ask_without_the_key_whether_a_page_may(live: Running) -> None:
    headers = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{live.url}/v1/completions", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://page.example")
    assert httpx.options(f"{live.url}/v1/completions", headers={"Origin": "https://page.example"}).status_code == 401


def test_a_listed_page_on_the_internet_may_ask_for_a_private_address(live: Running) -> None:
    """Chrome asks so before a page such as lite.koboldai.net may talk to 127.0.0.1."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Private-Network": "true"}
    for origin, status in (("https://page.example", 200), ("https://other.example", 400)):
        answer = httpx.options(f"{live.url}/api/v1/generate", headers={"Origin": origin, **asked})
        assert answer.status_code == status
    good = httpx.options(f"{live.url}/api/v1/generate", headers={"Origin": "https://page.example", **asked})
    assert good.headers["access-control-allow-private-network"] == "true"


def test_without_origins_no_page_is_let_in(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        answer = httpx.get(f"{live.url}/v1/models", headers={"Origin": "https://page.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_client_that_says_half_a_request_harms_nobody(live: Running) -> None:
    with send_half(live.url, "Authorization: Bearer sesame"):
        assert ask(live).status_code == 200
    assert ask(live).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_any_page_could_send_is_not_read(live: Running, path: str, kind: str | None) -> None:
    body = json.dumps({"model": "tiny-llama", "prompt": "a"})
    headers = {"Authorization": "Bearer sesame"} | ({"Content-Type": kind} if kind else {})
    answer = httpx.post(f"{live.url}{path}", content=body, headers=headers)
    assert answer.status_code in (400, 422)
    assert "Content-Type: application/json" in answer.text


@pytest.mark.parametrize(
    "origin", ["https://other.example", "null", "http://localhost:1", "http://[", "https://evil-page.example"]
)
def test_a_page_of_another_address_changes_nothing(live: Running, origin: str) -> None:
    """Forms and empty requests are sent by browsers without a question first (CSRF)."""
    headers = {"Authorization": "Bearer sesame", "Origin": origin}
    for path in ("/v1/soft_prompt/unload", "/api/extra/abort", "/v1/soft_prompts"):
        answer = httpx.post(f"{live.url}{path}", headers=headers, files={"file": ("v.zip", b"a")})
        assert answer.status_code == 403
    assert "--cors-origin" in answer.text
    assert httpx.delete(f"{live.url}/v1/soft_prompts/keeper", headers=headers).status_code == 403
    assert (live.folder / "keeper.zip").exists()


def test_its_own_pages_and_those_that_are_listed_do(live: Running) -> None:
    for origin in (live.url, "https://page.example", "https://writer.lan"):
        headers = {"Authorization": "Bearer sesame", "Origin": origin}
        assert httpx.post(f"{live.url}/v1/soft_prompt/unload", headers=headers).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(body_seconds=0.3)) as live:
        with send_half(live.url) as half:
            assert b" 408 " in half.recv(1000).split(b"\r\n")[0]
        # A long answer is no long body.
        ask = {"model": "tiny-llama", "prompt": "a", "max_tokens": 200}
        assert httpx.post(f"{live.url}/v1/completions", json=ask, timeout=30).status_code == 200


def test_an_error_of_our_own_is_told_in_the_shape_of_the_api(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(type(live.serving.prompts), "all", broken)
    headers = {"Authorization": "Bearer sesame"}
    openai = httpx.get(f"{live.url}/v1/models", headers=headers)
    assert (openai.status_code, openai.json()["error"]["type"]) == (500, "server_error")
    kobold = httpx.get(f"{live.url}/api/v1/config/soft_prompts_list", headers=headers)
    assert (kobold.status_code, list(kobold.json()["detail"])) == (500, ["msg", "type"])
    assert "secret" not in openai.text + kobold.text


def test_a_key_beyond_ascii(tmp_path: Path) -> None:
    with running(tmp_path, api_key="sésame") as live:
        for said, status in (("Bearer sésame".encode(), 200), (b"Bearer s?same", 401), (b"Bearer s\xe9same", 401)):
            assert httpx.get(f"{live.url}/v1/models", headers={"Authorization": said}).status_code == status


def test_wrong_keys_of_an_address_are_answered_ever_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_FIRST_SECONDS", 0.2)
    with running(tmp_path, api_key="sesame", with_page=True) as live:

        def seconds(status: int, **headers: str) -> float:
            began = time.monotonic()
            assert httpx.get(f"{live.url}/v1/models", headers=headers, timeout=30).status_code == status
            return time.monotonic() - began

        # No key is no wrong key: a page that is opened sends none.
        for _ in range(5):
            seconds(401)
        assert seconds(401, Authorization="Bearer wrong") >= 0.2
        assert seconds(401, **{"X-API-Key": "wrong"}) >= 0.4
        assert seconds(401, Cookie="sordino=wrong") >= 0.8
        began = time.monotonic()
        assert httpx.post(f"{live.url}/ui/login", json={"key": "wrong"}, timeout=30).status_code == 401
        assert time.monotonic() - began >= 1.6
        assert httpx.post(f"{live.url}/ui/login", json={"key": "sesame"}, timeout=30).status_code == 200
        seconds(200, Authorization="Bearer sesame")


def test_many_connections_find_no_key_faster_than_one(tmp_path: Path) -> None:
    """While wrong ones wait for their answers, no other key of the address is looked at."""
    with running(tmp_path, api_key="sesame", limits=ServerLimits(wrong_key_seconds=5)) as live, ExitStack() as stack:
        port = int(live.url.rpartition(":")[2])
        request = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %d\r\n\r\n"
        many = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(60)]
        for number, one in enumerate(many):
            one.sendall(request % number)
        found = Counter(one.recv(12)[-3:] for one in many)
        # Each that was looked at doubled the wait, so most were not.
        assert set(found) == {b"401", b"429"}
        assert found[b"429"] > 30
        assert httpx.get(f"{live.url}/health").status_code == 200
