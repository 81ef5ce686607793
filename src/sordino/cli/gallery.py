"""gallery: a folder of soft prompts as a web site, and what the sites of others offer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import note, one_line, out, print_json, shortened, show_table, warn
from sordino.cli.loading import ModelChoice, named_model_option
from sordino.cli.options import PATH, json_option
from sordino.cli.progress import download_bar, measuring_bar
from sordino.errors import NotInLibrary
from sordino.library.gallery.index import GalleryEntry, entry_to_json
from sordino.library.installing import Installed, Wanted, install
from sordino.library.library import Library

if TYPE_CHECKING:
    from sordino.library.gallery.added import AddedGallery

_LONGEST = 50


@click.group(short_help="Soft prompts of web pages: make such a page, add one, list what it offers.")
def gallery() -> None:
    """Soft prompts of web pages: make such a page, add one, list what it offers.

    `sordino install NAME@GALLERY` installs one.
    """


@gallery.command()
@click.argument("folder", type=PATH)
@click.option("--out", "site", required=True, type=PATH, metavar="SITE", help="The folder of the web site.")
@click.option("--title", default="", metavar="TEXT", help="What the page is called.  [default: the folder's name]")
@click.option("--url", default="", metavar="URL", help="Where the site will be, for its feed and its commands.")
@json_option()
def build(folder: Path, site: Path, title: str, url: str, as_json: bool) -> None:
    """Make a web site of the soft prompts in FOLDER, or bring it up to date.

    A page, an RSS feed, gallery.json and the files, which any host of files can serve. All metadata of the files is published.
    """
    from sordino.library.gallery.build import build_site

    built = build_site(folder, site, title=title, url=url)
    warn(*(f"left out: {line}" for line in built.left_out))
    note(*built.notes)
    if as_json:
        names = [entry.name for entry in built.index.entries]
        print_json({"path": str(site), "names": names, "left_out": built.left_out})
        return
    out.print(f"Written: {one_line(str(site))} ({_counted(built.index.entries)})")


@gallery.command()
@click.argument("address", metavar="URL|FILE")
@click.option("--name", default="", metavar="NAME", help="What to call it here.  [default: made of its title]")
@json_option()
def add(address: str, name: str, as_json: bool) -> None:
    """Add a gallery, or take over what it lists now.

    URL: of the page, of its gallery.json, or of any page that links to .zip files; FILE: a text with such links. Linked files
    are inspected, and nothing is run. What is new, gone or changed since the gallery was last added is printed.
    """
    from sordino.library.gallery.added import Galleries, found_at
    from sordino.library.gallery.web import Reach, Web

    with Web() as web, measuring_bar("Looking at links", at_once=False) as progress:
        found = found_at(web, address, most=Reach.MACHINE, progress=progress)
    kept, lines = Galleries().keep(found, name)
    warn(*kept.notes)
    if as_json:
        print_json(_as_json(kept) | {"changes": lines})
        return
    out.print(f"{one_line(kept.title) or kept.name}: {_counted(kept.entries)}")
    for line in lines:
        out.print(one_line(line))
    if kept.is_list:
        note("A list states no hashes: only sizes are checked.")
    if kept.entries:
        out.print(f"Install one: sordino install {one_line(kept.entries[0].name)}@{kept.name}")


@gallery.command("list")
@click.argument("name", default="")
@named_model_option()
@json_option()
def list_(name: str, model: ModelChoice, as_json: bool) -> None:
    """List the galleries that were added, or what the gallery NAME offers.

    With --model, how well each soft prompt may fit that model, which is not loaded.
    """
    from sordino.library.gallery.added import Galleries

    found = [Galleries().named(name)] if name else Galleries().all()
    if as_json:
        print_json([_as_json(one) for one in found])
    elif not found:
        out.print("No gallery has been added yet: sordino gallery add URL")
    elif name or model.model:
        _show_entries(found, model)
    else:
        rows = [[one.name, one.title, str(len(one.entries)), one.seen, one.error or one.address] for one in found]
        show_table(["name", "title", "#soft prompts", "seen", "address"], rows)


@gallery.command()
@click.argument("name")
def remove(name: str) -> None:
    """Forget a gallery. What was installed from it stays."""
    from sordino.library.gallery.added import Galleries

    Galleries().remove(name)
    out.print(f"Removed {one_line(name)}")


def install_located(source: str, library: Library, wanted: Wanted) -> Installed:
    """Install what SOURCE of `install` stands for on this machine, or in a gallery: then it is fetched, with a bar."""
    from sordino.library.gallery.added import Galleries
    from sordino.library.gallery.source import fetched_by, install_fetched

    with download_bar() as bar:
        fetched = None if os.path.exists(source) else fetched_by(source, Galleries(), progress=bar)
    if fetched is not None:
        path, origin = fetched
        note(f"sha256 {origin.sha256}")
        return install_fetched(library, path, wanted, warn=warn, origin=origin)
    try:
        path = library.resolve(source)
    except NotInLibrary as error:
        if "@" not in source:
            raise
        advice = f"{error.do}; `sordino gallery list` shows the galleries that were added"
        raise NotInLibrary(error.what, where=error.where, do=advice) from error
    return install(library, path, wanted, warn=warn)


def _counted(entries: Sequence[GalleryEntry]) -> str:
    return f"{len(entries)} soft prompt{'' if len(entries) == 1 else 's'}"


def _show_entries(found: list[AddedGallery], model: ModelChoice) -> None:
    base = None
    if model.model:
        from sordino.models.sizes import sizes_of

        base = sizes_of(model.model)
    heads = ["name", "#tokens", "made for", "#size", *(["fit"] if base else []), "rating", "description"]
    rows = [
        [
            f"{entry.name}@{one.name}",
            str(entry.n_tokens),
            entry.base.id or (f"{entry.d_model} wide" if entry.d_model else ""),
            f"{entry.bytes / 1e3:,.0f} kB",
            *([base.fit((entry.stated,)).kind] if base else []),
            entry.rating,
            shortened(entry.description or entry.title, _LONGEST),
        ]
        for one in found
        for entry in one.entries
    ]
    show_table(heads, rows)


def _as_json(one: AddedGallery) -> dict[str, Any]:

    known = {key: value for key, value in asdict(one).items() if key not in ("entries", "reach")}
    return known | {"entries": [entry_to_json(entry) for entry in one.entries]}
