"""Soft prompts on the Hugging Face Hub: search, describe, fetch, and one repository as a `Source`.

    for found in search("noir"):            # what cards say: nothing of it was checked
        found.stated                        # for `ModelSizes.fit`
    listing = describe(parse_reference("hf:USER/NAME"))     # pinned to a commit, its files chosen, sizes checked
    path = fetch(listing, progress)         # on this machine, hashes checked
    install_from_hub(library, listing)      # the same, and a copy in the library with its origin

Nothing but .zip, .safetensors and .npy files, and the JSON of an adapter, is downloaded. Raises HubError, StorageError,
SoftPromptFileError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sordino import formats
from sordino.errors import HubError, NotInLibrary, SordinoError
from sordino.formats.model_card import HUB_TAG, Claims, claims_of
from sordino.library.hub_files import HubFile, chosen, downloaded, local_path, total_size
from sordino.library.hub_names import PREFIX, HubReference, hub_errors
from sordino.library.installing import PLAIN, Installed, Wanted, install
from sordino.library.library import Library
from sordino.library.names import without_ending
from sordino.library.origins import Origin
from sordino.library.source import Item
from sordino.models.hub_answers import Progress
from sordino.prompts.mixture import StoredPrompt

# Of all repositories with the tag, those that are searched: the most downloaded.
MOST_LISTED = 1000
_FIELDS = ["author", "cardData", "downloads", "gated", "lastModified", "likes", "private", "sha", "tags"]


@dataclass(frozen=True)
class HubListing:
    """A repository, as the Hub and its card describe it; a card is its author's word.

    reference: pinned to the commit, once described. claims: the card's. changed: seconds since 1970. gated: its author asks for
    something first. files: what `fetch` downloads; () in the results of a search.
    """

    reference: HubReference
    claims: Claims
    author: str = ""
    tags: tuple[str, ...] = ()
    downloads: int = 0
    likes: int = 0
    changed: float = 0.0
    gated: bool = False
    private: bool = False
    files: tuple[HubFile, ...] = ()

    @property
    def size(self) -> int:
        """Bytes to download."""
        return total_size(self.files)

    @property
    def own_tags(self) -> list[str]:
        """Without those that every soft prompt of the Hub has."""
        return [tag for tag in self.tags if tag not in (HUB_TAG, "sordino", "peft", "safetensors")]

    @property
    def label(self) -> str:
        """What its file or folder is called there, without the ending."""
        if len(self.files) == 1:
            name = without_ending(self.files[0].name)
            return name if name != self.files[0].name else Path(name).stem
        return self.reference.repository.rpartition("/")[2]


def search(words: str = "", *, limit: int = 50) -> list[HubListing]:
    """Repositories with the tag whose name, card or tags hold all of the words, the most downloaded first. Raises HubError."""
    wanted = words.casefold().split()
    found: list[HubListing] = []
    with hub_errors(f"search {words}".strip()):
        from huggingface_hub import HfApi, constants, get_session
        from huggingface_hub.utils._http import hf_raise_for_status

        # The client tries a listing again for half a minute where there is no network, or a Hub in trouble.
        hf_raise_for_status(get_session().head(constants.ENDPOINT, timeout=10))
        models = HfApi().list_models(filter=HUB_TAG, sort="downloads", limit=MOST_LISTED, expand=_FIELDS)  # type: ignore[arg-type]
        for model in models:
            listing = _listing(model, HubReference(model.id))
            if all(word in _searched(listing) for word in wanted):
                found.append(listing)
            if len(found) == limit:
                break
    return found


def describe(reference: HubReference) -> HubListing:
    """What a repository holds now, or at the reference's revision: pinned to a commit. Only file names and sizes were read.

    Raises HubError where it cannot be had, or holds no soft prompt of a kind that may be downloaded.
    """
    with hub_errors(reference):
        from huggingface_hub import HfApi

        model = HfApi().model_info(
            reference.repository, revision=reference.revision or None, files_metadata=True, timeout=30
        )
        if not model.sha:
            raise HubError("the repository is empty", where=reference)
        files = chosen(reference, model.siblings or [])
    return replace(_listing(model, replace(reference, revision=model.sha)), files=files)


def fetch(listing: HubListing, progress: Progress | None = None) -> Path:
    """The local file or folder of a described repository, downloaded where it is not here, its hashes checked.

    progress: called with the bytes that have arrived and those that there are. What it raises ends the download, which can go on
    later. Raises HubError, StorageError.
    """
    return downloaded(listing.reference, listing.files, progress)


def install_from_hub(
    library: Library,
    listing: HubListing,
    wanted: Wanted = PLAIN,
    *,
    warn: Callable[[str], None],
    progress: Progress | None = None,
) -> Installed:
    """Fetch it and copy it into the library, which remembers repository, commit and hash. Raises as `fetch` and `install`."""
    path = fetch(listing, progress)
    reference = listing.reference
    weights = max(listing.files, key=lambda file: file.size)
    origin = Origin(
        source=f"{PREFIX}{reference.repository}",
        revision=reference.revision,
        file=weights.name if len(listing.files) == 1 else "",
        sha256=weights.sha256_of(local_path(reference, weights.name)),
    )
    return install(library, path, wanted, warn=warn, label=listing.label, origin=origin)


def contradictions(claims: Claims, prompt: StoredPrompt) -> list[str]:
    """Where a card says something else than the file, a line each. The file counts."""
    known = prompt.metadata
    pairs = (
        ("its content hash", claims.content_hash, prompt.content_hash),
        ("its kind", claims.kind, prompt.kind),
        ("virtual tokens", str(claims.n_tokens or ""), str(prompt.n_tokens)),
        ("its base model", claims.base_model, known.base.id),
        ("its rating", claims.rating, known.rating),
        ("its licence", claims.licence.lower(), known.licence.lower()),
    )
    return [
        f"the card in the repository is wrong about {what}: it says {claimed[:80]}, and the file {actual[:80]}"
        for what, claimed, actual in pairs
        if claimed and actual and claimed != actual
    ]


@dataclass(frozen=True)
class HubRepository:
    """A `Source`: the soft prompt of one repository, at the newest commit of its revision. An item's revision is the commit."""

    reference: HubReference
    progress: Progress | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return self.reference.repository

    def list(self) -> Iterator[Item]:
        try:
            listing = describe(self.reference)
        except SordinoError:
            return
        yield Item(listing.label, _place(listing), listing.reference.revision, listing.changed)

    def describe(self, item: Item) -> formats.Peek:
        return formats.peek(self.open(item))

    def open(self, item: Item) -> Path:
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            listing = describe(replace(self.reference, revision=str(item.revision)))
        except HubError as error:
            if isinstance(error.__cause__, RevisionNotFoundError):
                raise NotInLibrary("this revision is gone", where=self.reference) from error
            raise
        return fetch(listing, self.progress)


def _place(listing: HubListing) -> Path:
    return local_path(listing.reference, listing.files[0].name if len(listing.files) == 1 else "")


def _listing(model: Any, reference: HubReference) -> HubListing:
    """model: a ModelInfo of the Hub's client."""
    card: Mapping[str, Any] = model.card_data.to_dict() if model.card_data else {}
    return HubListing(
        reference,
        claims_of(card),
        author=model.author or reference.repository.partition("/")[0],
        tags=tuple(str(tag) for tag in model.tags or () if ":" not in str(tag)),
        downloads=model.downloads or 0,
        likes=model.likes or 0,
        changed=model.last_modified.timestamp() if model.last_modified else 0.0,
        gated=bool(model.gated),
        private=bool(model.private),
    )


def _searched(listing: HubListing) -> str:
    claims = listing.claims
    texts = (listing.reference.repository, claims.name, claims.description, claims.base_model, *listing.tags)
    return " ".join(texts).casefold()
