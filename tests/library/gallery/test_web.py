"""Which addresses are asked, and which answers are taken."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from sordino.errors import GalleryError
from sordino.library.gallery.web import Reach, Web, checked_url, reach_of
from tests.library.gallery.serving import FileHost, file_host


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("93.184.216.34", Reach.INTERNET),
        ("2606:2800:220:1::1", Reach.INTERNET),
        ("10.0.0.1", Reach.NETWORK),
        ("192.168.1.5", Reach.NETWORK),
        ("169.254.169.254", Reach.NETWORK),
        ("100.64.0.1", Reach.NETWORK),
        ("224.0.0.1", Reach.NETWORK),
        ("fd00::1", Reach.NETWORK),
        ("fe80::1%eth0", Reach.NETWORK),
        ("::ffff:10.0.0.1", Reach.NETWORK),
        ("127.0.0.1", Reach.MACHINE),
        ("127.9.9.9", Reach.MACHINE),
        ("0.0.0.0", Reach.MACHINE),
        ("::1", Reach.MACHINE),
        ("::ffff:127.0.0.1", Reach.MACHINE),
        ("2002:7f00:1::", Reach.MACHINE),
    ],
)
def test_where_addresses_lead(address: str, reach: Reach) -> None:
    assert reach_of(address) == reach


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://files.example/x.zip", "plain http"),
        ("http://192.168.1.5/x.zip", "plain http"),
        ("ftp://files.example/x.zip", "not an address"),
        ("file:///etc/passwd", "not an address"),
        ("https://", "not an address"),
        ("https://files.example:99999/x.zip", "not an address"),
        ("https://[::1/x.zip", "not an address"),
        ("https://user:secret@files.example/x.zip", "a name and password"),
    ],
)
def test_addresses_that_are_not_asked(url: str, what: str) -> None:
    with pytest.raises(GalleryError, match=what) as caught:
        checked_url(url, Reach.MACHINE)
    assert "secret" not in caught.value.message


def got(host: FileHost, path: str, most: Reach = Reach.MACHINE) -> bytes:
    with Web() as web, web.get(path if "://" in path else host.url + path, most) as answer:
        return answer.body(1000)


@pytest.fixture
def host() -> Any:
    with file_host() as one:
        one.files["/x"] = b"content"
        yield one


def test_an_answer_and_a_part_of_it(host: FileHost) -> None:
    assert got(host, "/x") == b"content"
    with Web() as web, web.get(f"{host.url}/x", Reach.MACHINE, begin=3, count=2) as answer:
        assert (answer.start, answer.size, answer.reach, answer.body(10)) == (3, 7, Reach.MACHINE, b"te")


def test_redirects_are_followed_and_bounded(host: FileHost) -> None:
    host.redirects |= {"/1": "/2", "/2": f"{host.url}/x", "/loop": "/loop"}
    assert got(host, "/1") == b"content"
    host.asked.clear()
    with pytest.raises(GalleryError, match="too many redirects"):
        got(host, "/loop")
    assert len(host.asked) == 6


@pytest.mark.parametrize(
    "to", ["http://files.example/x", "ftp://files.example/x", "https://a:b@files.example/x", "//["]
)
def test_each_redirect_is_checked(host: FileHost, to: str) -> None:
    host.redirects["/1"] = to
    with pytest.raises(GalleryError):
        got(host, "/1")


@pytest.mark.parametrize("most", [Reach.INTERNET, Reach.NETWORK])
def test_nothing_from_farther_away_leads_to_this_machine(host: FileHost, most: Reach) -> None:
    with pytest.raises(GalleryError, match="leads to this machine"):
        got(host, "/x", most)
    assert not host.asked


def test_a_name_that_resolves_to_this_machine_is_refused_before_it_is_asked(
    host: FileHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(host.url.rpartition(":")[2])
    resolved = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: resolved)
    with pytest.raises(GalleryError, match="leads to this machine"):
        got(host, f"https://files.example:{port}/x", Reach.INTERNET)
    assert not host.asked


def test_a_connection_that_is_open_already_is_checked_too(host: FileHost) -> None:
    with Web() as web:
        with web.get(f"{host.url}/x", Reach.MACHINE) as answer:
            answer.body(10)
        with pytest.raises(GalleryError, match="leads to this machine"), web.get(f"{host.url}/x", Reach.NETWORK):
            pass


@pytest.mark.parametrize(
    ("headers", "what"),
    [
        ({"Content-Encoding": "gzip"}, "compressed"),
        ({"Content-Range": "lines 1-2/3"}, "without a statement"),
        ({"Content-Range": f"bytes 1-2/{'9' * 5000}"}, "without a statement"),
        ({"Content-Length": "9" * 5000}, "cannot be reached"),
    ],
)
def test_answers_that_are_none(host: FileHost, headers: dict[str, str], what: str) -> None:
    host.headers["/x"] = headers
    with pytest.raises(GalleryError, match=what), Web() as web, web.get(f"{host.url}/x", Reach.MACHINE, begin=1):
        pass


def test_what_is_too_large_missing_or_broken_off(host: FileHost) -> None:
    host.files |= {"/large": b"x" * 1001, "/cut": b"x" * 100}
    host.cuts["/cut"] = [50]
    for path, what in (("/large", "too large"), ("/none", "HTTP 404"), ("/cut", "cannot be reached")):
        with pytest.raises(GalleryError, match=what):
            got(host, path)


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(GalleryError, match="cannot be reached"):
            got(FileHost(), f"http://127.0.0.1:{taken.getsockname()[1]}/x")
