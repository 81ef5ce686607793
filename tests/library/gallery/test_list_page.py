"""Links in pages and messages, and what is seen of the files behind them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sordino import formats
from sordino.library.gallery.list_page import MAX_LINKS, data_of, entries_at, links
from sordino.library.gallery.web import Reach, Web
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt
from tests.library.gallery.serving import FileHost, file_host
from tests.prompt_files import drop, matrix

RENTRY = """<!DOCTYPE html><html><body><h1>Soft prompts</h1>
<p><a href="https://files.example/a/gothic%20tales.zip" rel="nofollow">Gothic</a>, made by X</p>
<p><a href="/b/noir.ZIP?download=1&amp;v=2#top">Noir</a> <a href="notes.txt">notes</a> <a>nothing</a></p>
<p>and https://files.example/c/bare.zip.</p>
<script>location = "javascript:alert('x.zip')"</script><a href="javascript:x.zip">bad</a></body></html>"""
DISCORD = """**my softprompts** (mirror: <https://files.example/one.zip>)
- [two](https://files.example/two_(final).zip), [same](https://files.example/one.zip)
- three: https://files.example/three.kv.zip, four: (https://files.example/four.zip)
- https://huggingface.co/someone/voices/blob/main/five.zip
- [local](six.zip) https://files.example/page.html https://[broken.zip"""


def test_links_of_a_page() -> None:
    assert links(RENTRY, "https://rentry.example/list") == [
        "https://files.example/a/gothic%20tales.zip",
        "https://rentry.example/b/noir.ZIP?download=1&v=2",
        "https://files.example/c/bare.zip",
    ]


def test_links_of_a_message() -> None:
    assert links(DISCORD) == [
        "https://files.example/two_(final).zip",
        "https://files.example/one.zip",
        "https://files.example/three.kv.zip",
        "https://files.example/four.zip",
        "https://huggingface.co/someone/voices/resolve/main/five.zip",
    ]


def test_a_page_says_where_its_data_is() -> None:
    page = '<html><link rel="alternate" type="application/rss+xml" href="feed.xml">'
    assert data_of(page) == ""
    assert data_of(page + '<link rel="alternate" type="application/json" href="gallery.json">') == "gallery.json"


@pytest.fixture
def host() -> Iterator[FileHost]:
    with file_host() as one:
        yield one


def looked(host: FileHost, *paths: str) -> tuple[dict[str, tuple[object, ...]], list[str]]:
    with Web() as web:
        entries, notes = entries_at(web, [host.url + path for path in paths], Reach.MACHINE)
    return {entry.name: (entry.kind, entry.n_tokens, entry.d_model, entry.title) for entry in entries}, notes


def test_every_kind_is_seen_from_its_header(host: FileHost, tmp_path: Path) -> None:
    one = SoftPrompt(np.ones((300, 512), np.float32), Metadata(name="One", base=BaseRef("org/x", d_model=512)))
    formats.write(one, tmp_path / "one.zip")
    formats.write_mixture(Mixture((one, one), np.ones(2), metadata=Metadata(name="Both")), tmp_path / "both.mix.zip")
    keys = KVPrompt(matrix(1, 2, 8), KVShape(2, 1, 2), np.zeros(0), Metadata(name="Keys", placement="after_bos"))
    formats.write_any(keys, tmp_path / "keys.kv.zip", to="kv")
    for path in tmp_path.iterdir():
        host.files[f"/{path.name}"] = path.read_bytes()
    found, notes = looked(host, *host.files)
    assert notes == []
    assert found == {
        "one": ("embedding prompt", 300, 512, "One"),
        "both": ("mixture", 300, 512, "Both"),
        "keys": ("KV prompt", 2, 0, "Keys"),
    }
    # Of 600 KB no more than the blocks with headers.
    assert 0 < len([path for path, _ in host.asked if path == "/one.zip"]) <= 3


def test_old_files_and_golden_ones(host: FileHost) -> None:
    golden = Path(__file__).resolve().parents[2] / "golden"
    for name in ("koboldai-lzma-float16.zip", "koboldai-bfloat16-comma-supported.zip", "v1.zip"):
        host.files[f"/{name}"] = (golden / name).read_bytes()
    found, notes = looked(host, *host.files)
    assert notes == []
    assert len(found) == 3


def test_what_is_no_soft_prompt_gets_a_line(host: FileHost, tmp_path: Path) -> None:
    good = drop(tmp_path / "good.zip").read_bytes()
    large = np.random.default_rng(1).standard_normal((200, 512)).astype(np.float32)
    formats.write(SoftPrompt(large), tmp_path / "large.zip")
    host.files |= {
        "/good.zip": good,
        "/page.zip": b"<html>not here</html>",
        "/empty.zip": b"",
        "/cut.zip": good[:-10],
        "/whole.zip": (tmp_path / "large.zip").read_bytes(),
        "/bytes.zip": os.urandom(100_000),
    }
    host.whole.add("/whole.zip")
    host.redirects["/away.zip"] = "http://files.example/x.zip"
    found, notes = looked(host, *host.files, "/away.zip", "/none.zip")
    assert list(found) == ["good"]
    assert len(notes) == 7
    for path, reason in (("/whole.zip", "no parts of files"), ("/away.zip", "plain http"), ("/none.zip", "HTTP 404")):
        assert any(reason in note and (host.url + path in note) for note in notes), notes


def test_names_are_apart_and_links_are_counted(host: FileHost, tmp_path: Path) -> None:
    good = drop(tmp_path / "v.zip").read_bytes()
    host.files |= {"/a/v.zip": good, "/b/V.zip": good, "/c/..%2f..%2fv.zip": good, "/d/v (1).zip": good}
    found, notes = looked(host, "/a/v.zip", "/b/V.zip", "/d/v%20(1).zip")
    assert sorted(found) == ["V-2", "v"]
    assert len(notes) == 1
    _, notes = looked(host, *["/none.zip"] * (MAX_LINKS + 1))
    assert notes[0] == f"only the first {MAX_LINKS} of {MAX_LINKS + 1} links were looked at"
    assert len(notes) == MAX_LINKS + 1
