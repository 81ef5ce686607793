"""The documentation as a web site: every page is in it, every link leads somewhere, and nothing comes from another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from website.check import faults

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGURATION = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r"^ +- .+: (\S+\.md)$", CONFIGURATION, re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {path.name for path in (REPOSITORY / "docs").glob("*.md")} - set(listed) == set()


def test_what_stands_in_a_list_is_indented_as_the_site_needs_it() -> None:
    """A paragraph by 4, code by 8: with less, MkDocs ends the list, or shows code as text."""
    wrong = []
    for path in [*(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("*.md")]:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        wrong += [(path.name, line) for line in re.findall(r"\n\n((?: {1,3}| {5,7})\S.*)", text)]
    assert wrong == []


@pytest.mark.slow
def test_the_site_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(
        build,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        timeout=900,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert faults(tmp_path / "site") == []
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'href="guide.html"' in home
    # A cell whose code has bars.
    training = (tmp_path / "site" / "training.html").read_text(encoding="utf-8")
    assert "<code>&lt;|endoftext|&gt;</code>" in training
    assert r"\|" not in training
    assert (tmp_path / "site" / "http.html").is_file()
    # The search works in a copy on the disk.
    assert (tmp_path / "site" / "search" / "search_index.js").is_file()


def test_faults_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="one"></h1><a href="b.html#two"></a><a href="b.html#three"></a><a href="c.html"></a><a href="#one"></a>'
        '<a href="https://example.org"></a><script src="https://example.org/x.js"></script><a href="/b.html"></a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="two"></h2><img src="data:image/png;base64,">')
    assert faults(tmp_path) == [
        "a.html: no heading b.html#three",
        "a.html: no c.html",
        "a.html: <script> fetches https://example.org/x.js",
        "a.html: /b.html leads nowhere in a copy on the disk",
    ]
