"""Where the server listens and whom it lets in: what is refused before anything is loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sordino.errors import ConfigError
from sordino.server.addresses import Access, checked_hosts, checked_key, checked_origins, near


def test_a_key_is_what_a_client_can_send() -> None:
    """A file's last line end, kept in SORDINO_API_KEY, locked everybody out."""
    assert checked_key("sesame\n") == checked_key(" sesame ") == "sesame"
    assert checked_key("sésame open") == "sésame open"
    assert checked_key(None) is None
    for wrong in ("", " \n", "a\nb", "a\udcff"):
        with pytest.raises(ConfigError, match="key"):
            checked_key(wrong)


def test_names_are_hosts_names() -> None:
    good = ("writer.lan", ".example.org", "Phone", "my_box-2.local", "192.168.1.5")
    assert checked_hosts(good) == good
    for wrong in ("http://writer.lan", "writer.lan:5000", "*", "*.example.org", "writer.lan/", "", "a..b"):
        with pytest.raises(ConfigError, match=r"--allowed-host.*writer\.lan"):
            checked_hosts([wrong])


def test_pages_are_told_as_browsers_tell_them() -> None:
    good = (
        "https://lite.koboldai.net",
        "http://[::1]:81",
        "http://localhost:5173",
        "chrome-extension://abc",
        "*",
        "null",
    )
    assert checked_origins(good) == good
    assert checked_origins(["https://Lite.KoboldAI.net/"]) == ("https://lite.koboldai.net",)
    for wrong in ("lite.koboldai.net", "https://", "https://a/b", "https://a?b", "https://u@a", "http://[", ""):
        with pytest.raises(ConfigError, match="--cors-origin"):
            checked_origins([wrong])


def test_every_address_is_none_that_a_browser_opens() -> None:
    assert near("http://0.0.0.0:5000") == "http://127.0.0.1:5000"
    assert near("http://[::]:5000") == "http://[::1]:5000"
    assert near("http://10.0.0.0:5000") == "http://10.0.0.0:5000"


@pytest.fixture
def busy() -> Iterator[int]:
    """A port that a program listens at."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_busy_port_is_an_error_that_says_what_to_do(busy: int) -> None:
    with pytest.raises(ConfigError, match=rf"127.0.0.1:{busy}: cannot listen there \([^()]*\); end .* another --port"):
        Access(port=busy).listen()


def test_the_next_free_port_is_one_that_can_be_listened_at(busy: int) -> None:
    free = Access(port=busy, api_key="k").at_free_port()
    assert busy < free.port < busy + 20
    assert free.api_key == "k"
    with free.listen() as listening:
        assert listening.getsockname()[1] == free.port


def test_a_free_port_is_kept_and_an_address_that_is_not_here_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert Access(port=port).at_free_port() == Access(port=port)
    assert Access(port=0).at_free_port() == Access(port=0)
    nowhere = Access(host="no.such.host.invalid", insecure=True)
    assert nowhere.at_free_port() is nowhere
