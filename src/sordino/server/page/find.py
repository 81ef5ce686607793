"""Find on the page: soft prompts of galleries and of the Hugging Face Hub, how well they fit, and installing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field

from sordino.library import hub
from sordino.library.entry import Entry
from sordino.library.gallery.added import AddedGallery, Galleries, found_at
from sordino.library.gallery.index import GalleryEntry
from sordino.library.gallery.source import fetched_from, files_folder, install_fetched
from sordino.library.gallery.web import Reach, Web
from sordino.library.hub_names import PREFIX, parse_reference
from sordino.library.installing import Installed, Wanted
from sordino.library.library import Library
from sordino.library.origins import origins
from sordino.models.catalogue import sizes_here
from sordino.models.sizes import ModelSizes
from sordino.prompts.description import made_for
from sordino.prompts.fit import Stated
from sordino.server.bodies import StrictBody
from sordino.server.errors import refusing
from sordino.server.page.installs import Installs, Progress
from sordino.server.page.prompts import SAMPLE_CHARS, unfit_of
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import state_of

router = APIRouter(prefix="/ui/find", include_in_schema=False)

_MOST_OF_THE_HUB = 100
# What galleries and cards state alike.
_STATED = ("description", "licence", "rating", "kind", "n_tokens")
_Text = Annotated[str, Field(min_length=1, max_length=2000)]


class GalleryAddress(StrictBody):
    """address: of a gallery or a list page; one that was added before is looked at again."""

    address: _Text


class InstallWanted(StrictBody):
    """source: NAME@GALLERY or hf:USER/NAME. replace: another soft prompt of the name."""

    source: _Text
    replace: bool = False


class InstallNamed(StrictBody):
    """source: of an install."""

    source: _Text


@router.get("")
def find(request: Request) -> dict[str, Any]:
    """The galleries that were added, and a row for each soft prompt that they list. Asks no network."""
    galleries = _galleries(request).all()
    rows = _Rows(request)
    return {
        "galleries": [_gallery(one) for one in galleries],
        "found": [rows.of_entry(one, entry) for one in galleries for entry in one.entries],
        "installs": _installs(request).status(),
    }


@router.get("/hub")
def of_the_hub(request: Request, words: str = "") -> dict[str, Any]:
    """A row for each soft prompt of the Hub whose card has these words, as far as cards say."""
    with refusing("words"):
        listings = hub.search(words[:200], limit=_MOST_OF_THE_HUB)
    rows = _Rows(request)
    return {"found": [rows.of_listing(one) for one in listings]}


@router.post("/galleries")
def add(request: Request, body: GalleryAddress) -> dict[str, Any]:
    """Add a gallery, or take over what it lists now; changes: a line for each entry that is not as before."""
    with refusing("address"), Web() as web:
        found = found_at(web, _address(body.address), most=_reach(request))
        kept, changes = _galleries(request).keep(found)
    return _gallery(kept) | {"changes": changes}


@router.delete("/galleries/{name}")
def remove(request: Request, name: str) -> dict[str, Any]:
    """Forget a gallery; what was installed from it stays."""
    with refusing("name"):
        _galleries(request).remove(name)
    return {}


@router.post("/install")
def start(request: Request, body: InstallWanted) -> dict[str, Any]:
    """Install in the background; `installs` says how far it is."""
    prompts, wanted = state_of(request).prompts, Wanted(replace=body.replace)
    if body.source.startswith(PREFIX):
        with refusing("source"):
            reference = parse_reference(body.source)

        def work(progress: Progress) -> Installed:
            listing = hub.describe(reference)
            return hub.install_from_hub(prompts.library, listing, wanted, warn=_no_warning, progress=progress)
    else:
        name, _, gallery = body.source.rpartition("@")
        with refusing("source"):
            added = _galleries(request).named(gallery)
            added.entry(name)

        def work(progress: Progress) -> Installed:
            path, origin = fetched_from(added, name, cache=files_folder(), progress=progress)
            return install_fetched(prompts.library, path, wanted, warn=_no_warning, origin=origin)

    _installs(request).start(body.source, work, prompts.refresh)
    return installs(request)


@router.get("/installs")
def installs(request: Request) -> dict[str, Any]:
    return {"installs": _installs(request).status()}


@router.post("/installs/cancel")
def cancel(request: Request, body: InstallNamed) -> dict[str, Any]:
    """End a download; what has arrived stays for the next try."""
    _installs(request).cancel(body.source)
    return installs(request)


# Rows --------------------------------------------------------------------------------------------------------------------


class _Rows:
    """Rows for a list, with how well each fits the model that is loaded. Models on this machine are looked up once."""

    def __init__(self, request: Request) -> None:
        self._prompts: ServedPrompts = state_of(request).prompts
        self._library = _Held(self._prompts.library)
        self._here: Mapping[str, ModelSizes] | None = None

    def of_entry(self, gallery: AddedGallery, entry: GalleryEntry) -> dict[str, Any]:
        return {
            "source": f"{entry.name}@{gallery.name}",
            "from": gallery.title or gallery.name,
            "name": entry.title or entry.name,
            **{name: getattr(entry, name) for name in (*_STATED, "author", "tags", "bytes", "gain")},
            "samples": [{key: text[:SAMPLE_CHARS] for key, text in sample.items()} for sample in entry.samples[:2]],
            "held": self._library.from_gallery(entry),
            **self._fit(entry.stated, entry.n_tokens),
        }

    def of_listing(self, listing: hub.HubListing) -> dict[str, Any]:
        """Of what a card says; nothing of it was checked."""
        claims, repository = listing.claims, listing.reference.repository
        return {
            "source": str(listing.reference),
            "from": "Hugging Face Hub",
            "name": claims.name or repository.rpartition("/")[2],
            **{name: getattr(claims, name) for name in _STATED},
            "author": listing.author,
            "tags": listing.own_tags,
            "bytes": None,
            "gain": None,
            "samples": [],
            "held": self._library.from_hub(listing),
            **self._fit(claims.stated, claims.n_tokens),
        }

    def _fit(self, stated: Stated, n_tokens: int) -> dict[str, Any]:
        """fit: one of `Fit.kind`, None while no model is loaded; and as `unfit_of`."""
        entry = Entry("", Path(), n_tokens, stated.d_model, stated.metadata, parts=(stated,))
        one = self._prompts.served(entry)
        if not one.usable and self._here is None:
            self._here = sizes_here()
        return {
            "fit": one.fit.kind if one.fit else None,
            "made_for": made_for(stated.metadata, stated.d_model),
            **unfit_of(one, self._prompts.base, self._here or {}),
        }


class _Held:
    """Which soft prompts of the library came from where."""

    def __init__(self, library: Library) -> None:
        known = origins(library.folders[0]).values()
        self._hashes, self._sources = {one.sha256 for one in known}, {one.source for one in known}
        self._entries = library.scan() if known else []

    def from_gallery(self, entry: GalleryEntry) -> str | None:
        """The name in the library of what was installed from this very file; None where nothing was, or it is there no longer."""
        known = entry.sha256 in self._hashes if entry.sha256 else entry.url in self._sources
        return self._like(entry.title or entry.name, entry.n_tokens, entry.d_model) if known else None

    def from_hub(self, listing: hub.HubListing) -> str | None:
        """The same of a repository, at any commit of it."""
        claims = listing.claims
        known = f"{PREFIX}{listing.reference.repository}" in self._sources
        return self._like(claims.name, claims.n_tokens, claims.stated.d_model) if known else None

    def _like(self, title: str, n_tokens: int, d_model: int) -> str | None:
        wanted = (title, n_tokens, d_model)
        found = (one.name for one in self._entries if (one.metadata.name, one.n_tokens, one.d_model) == wanted)
        return next(found, None)


def _gallery(one: AddedGallery) -> dict[str, Any]:
    names = ("name", "address", "title", "is_list", "seen", "notes", "error")
    return {key: value for key, value in asdict(one).items() if key in names} | {"count": len(one.entries)}


def _galleries(request: Request) -> Galleries:
    galleries: Galleries = request.app.state.galleries
    return galleries


def _installs(request: Request) -> Installs:
    found: Installs = request.app.state.installs
    return found


def _address(text: str) -> str:
    """What people copy out of an address line may lack the scheme. Never a file of the server's machine."""
    text = text.strip()
    return text if "://" in text else f"https://{text}"


def _reach(request: Request) -> Reach:
    """The nearest place that somebody's browser may let this server ask: of its own machine, only one that is on it."""
    forwarded = {"forwarded", "x-forwarded-for"} & set(request.headers.keys())
    try:
        on_this_machine = request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        on_this_machine = False
    return Reach.MACHINE if on_this_machine and not forwarded else Reach.INTERNET


def _no_warning(line: str) -> None:
    """What formats leave out of other programs' files; galleries and the Hub have native ones."""
