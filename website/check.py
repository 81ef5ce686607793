"""`python -m website.check build/site`: do all links of the built site lead somewhere, and is nothing fetched from elsewhere?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself. Links that a reader follows may lead anywhere.
_FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
    ("form", "action"),
}


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name"):
                self.ids.add(value or "")
            elif name in ("href", "src", "action"):
                self.links.append((tag, name, value or ""))


def faults(site: Path) -> list[str]:
    """A line for each link that leads nowhere and for each address that the site would fetch from another host."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    # The page of a missing address is shown at any depth, so its links begin at the root.
    pages.pop(site / "404.html", None)
    return [f"{path.relative_to(site)}: {fault}" for path in pages for fault in _faults(path, pages)]


def _faults(path: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    for tag, attribute, link in pages[path].links:
        address = urlsplit(link)
        if address.scheme or address.netloc:
            if (tag, attribute) in _FETCHED and address.scheme != "data":
                yield f"<{tag}> fetches {link}"
            continue
        if address.path.startswith("/"):
            yield f"{link} leads nowhere in a copy on the disk"
            continue
        target = (path.parent / unquote(address.path)).resolve() if address.path else path
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            yield f"no {link}"
        elif address.fragment and target in pages and unquote(address.fragment) not in pages[target].ids:
            yield f"no heading {link}"


def main() -> int:
    (site,) = map(Path, sys.argv[1:])
    found = faults(site.resolve())
    for fault in found:
        print(f"error: {fault}", file=sys.stderr)
    print(f"{len(list(site.rglob('*.html')))} pages, {len(found)} faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
