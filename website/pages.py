"""A hook of MkDocs: pages made from files outside docs/, and links to them.

README.md is the first page. The other documents of the repository, the decisions' list and the examples are pages too, so the
site is complete. Links in the sources stay as GitHub needs them; here they are turned into links of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link, Navigation
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
# What is at a path of the repository, as a path of the site. All of docs/ lies at the site's root.
PAGES = {
    "README.md": "index.md",
    "LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.txt",
    "notebooks/sordino.ipynb": "notebooks/sordino.ipynb",
    "examples": "examples.md",
    "docs/decisions": "decisions/index.md",
}
_CODE_IN_TABLE = re.compile(r"^\|.*\\\|.*$", re.MULTILINE)
_PICTURE = re.compile(r"^(!\[[^]\n]*\]\(([^)\s]+)\))$", re.MULTILINE)
SOURCES = {target: path for path, target in PAGES.items() if (REPOSITORY / path).is_file()}
# The text of a link that is a picture has brackets of its own, and stays.
_LINK = re.compile(r"(\[[^][\n]*)?\]\(([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for target, source in SOURCES.items():
        files.append(File.generated(config, target, abs_src_path=str(REPOSITORY / source)))
    files.append(File.generated(config, "examples.md", content=_examples()))
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """`make site` puts a gallery of the packaged soft prompts beside the pages, and names its place."""
    if place := os.environ.get("GALLERY"):
        nav.items.append(Link("Gallery", f"{place}/index.html"))
    return nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    titles = dict(_titles(config.nav))
    source = SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        found = PAGES.get(path, path.removeprefix("docs/"))
        # A file's name says less to a reader of the site than the page's title.
        text = f"[{titles.get(found, text[1:])}" if text and text.endswith(".md") else text or ""
        return f"{text}]({posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or '.')}"

    # On a phone a picture is small until it is opened.
    return _PICTURE.sub(r"[\1](\2)", _LINK.sub(link, _CODE_IN_TABLE.sub(_without_escapes, markdown)))


def _without_escapes(row: re.Match[str]) -> str:
    """GitHub wants a bar in a cell escaped, in code too, where MkDocs shows the backslash."""
    return re.sub(r"`[^`\n]*`", lambda code: code[0].replace(r"\|", "|"), row[0])


def _titles(navigation: object) -> Iterator[tuple[str, str]]:
    """Each page of the navigation with its title there."""
    if isinstance(navigation, list):
        for entry in navigation:
            yield from _titles(entry)
    elif isinstance(navigation, dict):
        for title, below in navigation.items():
            if isinstance(below, str):
                yield below, title
            else:
                yield from _titles(below)


def _examples() -> str:
    scripts = [
        f"## {path.name}\n\n```python\n{path.read_text(encoding='utf-8').strip()}\n```\n"
        for path in sorted((REPOSITORY / "examples").glob("*.py"))
    ]
    return "\n".join(["# Examples\n", "Scripts that run, from the folder `examples` of the repository.\n", *scripts])


def _decisions() -> str:
    records = sorted((REPOSITORY / "docs" / "decisions").glob("0*.md"))
    titles = [path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in records]
    links = [f"- [{title}]({path.name})" for title, path in zip(titles, records, strict=True)]
    return "\n".join(["# Decisions\n", "Why some things are as they are, a page for each.\n", *links, ""])
