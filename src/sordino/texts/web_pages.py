"""HTML to the text that a browser shows."""

from __future__ import annotations

import re
from pathlib import Path

from sordino.errors import DataError, MissingExtra

SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
_OPENING = re.compile(
    r"\A\ufeff?\s*(?:<\?xml[^>]*>\s*)?(?:<!--(?:(?!-->).)*-->\s*)*+<(?:!doctype\s+html|html)(?=[\s>])",
    re.IGNORECASE | re.DOTALL,
)
# Parts of a saved page that a browser does not show; `noscript` repeats what a script shows.
_UNSEEN = "//script|//style|//template|//noscript|//head|//*[@hidden]"
_HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
MAX_CHARACTERS = 1 << 26  # the parser's tree takes about twenty times as much


def is_web_page(text: str, path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or _OPENING.match(text[:4096]) is not None


def page_text(text: str, path: Path) -> str:
    """The visible text, a paragraph or heading a block. Raises DataError, MissingExtra."""
    try:
        from inscriptis import Inscriptis
        from inscriptis.css_profiles import CSS_PROFILES
        from inscriptis.model.config import ParserConfig
        from lxml import etree, html
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "reading HTML needs another package", where=path, got=error.name, do="pip install 'sordino[texts]'"
        ) from None
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            "the HTML file is too large",
            where=path,
            expected=f"at most {MAX_CHARACTERS:,} characters",
            got=f"{len(text):,}",
        )
    try:
        # As bytes: lxml refuses a str that declares an encoding, and has been decoded from UTF-8 already.
        parser = html.HTMLParser(encoding="utf-8", huge_tree=True)
        tree = html.document_fromstring(text.encode("utf-8"), parser=parser)
        fatal = parser.error_log.filter_from_fatals()
        if fatal:  # the rest of the page is lost
            raise ValueError(fatal[0].message)
        styled = tree.xpath("//*[@style]")
        for unseen in [*tree.xpath(_UNSEEN), *(part for part in styled if _HIDDEN.search(part.get("style")))]:
            if unseen.getparent() is not None:
                unseen.drop_tree()
        # Large margins would become as many empty lines.
        etree.strip_attributes(tree, "style")
        shown = Inscriptis(tree, ParserConfig(css=CSS_PROFILES["strict"])).get_text()
    except RecursionError:
        raise DataError("this HTML is nested too deeply", where=path, do="save the page as plain text") from None
    except (etree.LxmlError, ValueError) as error:
        raise DataError(
            "this HTML cannot be read", where=path, got=str(error)[:80], do="save the page as plain text"
        ) from None
    return "\n".join(line.rstrip() for line in shown.split("\n")).strip("\n") + "\n"
