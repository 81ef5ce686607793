"""Put a soft prompt on the Hugging Face Hub: PEFT's folder at the root of a repository, the native file, a report and a card.

    with prepared(path, "USER/NAME", PushSettings()) as ready:
        ready.disclosure, ready.files       # to read before anything is sent
        pushed = push(ready)

The account is the Hub client's own (`hf auth login`, HF_TOKEN): no token is taken, written or shown here.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sordino import formats
from sordino.errors import BadInput, ConfigError, HubError
from sordino.formats.model_card import CARD, card, is_edited
from sordino.library.hub_files import looks_like_a_prompt
from sordino.library.hub_names import checked_repository, hub_errors
from sordino.library.names import ENDINGS, default_name, safe_name
from sordino.library.outputs import REPORT
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.mixture import Mixture

_REPORT_DISCLOSES = (
    f"{REPORT}: more than the file; its samples, nearest words and notes may repeat what the texts say (--no-report)"
)
_LANGUAGE = re.compile(r"[a-z]{2,3}")
# The Hub's, old and new.
_TOKEN = re.compile(rb"\b(hf|api_org)_[A-Za-z0-9]{20,}")
_MOST_CARD = 4 << 20


@dataclass(frozen=True)
class PushSettings:
    """licence: in place of the file's. language: ISO 639 code of the texts. report: a page of results. private: only for a new
    repository. overwrite: replace a card that somebody edited, and remove other soft prompts from the repository."""

    private: bool = False
    licence: str | None = None
    language: str = ""
    report: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Prepared:
    """What `push` sends: the files in a temporary folder, which the Hub's client hides none of. account: whose it is sent as.

    disclosure: what the files say, a line each. warnings: what other programs will not know. parent: the commit that is there, ""
    for a new repository. stale: files there that are removed. private: as the repository will be.
    """

    repository: str
    folder: Path
    account: str
    private: bool
    disclosure: tuple[str, ...]
    warnings: tuple[str, ...]
    parent: str = ""
    stale: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, int]:
        """Names and sizes."""
        return {path.name: path.stat().st_size for path in sorted(self.folder.iterdir())}


@dataclass(frozen=True)
class Pushed:
    """address: of the repository's page. new: False where it held all of this already."""

    address: str
    commit: str
    new: bool


@contextmanager
def prepared(path: Path, repository: str, settings: PushSettings) -> Iterator[Prepared]:
    """Make all files, and look at what the Hub has; nothing is sent. Raises BadInput, HubError, StorageError."""
    checked_repository(repository)
    if settings.language and not _LANGUAGE.fullmatch(settings.language):
        raise ConfigError("no code of a language", where="--language", expected="en, de, ...", got=settings.language)
    if settings.report is not None and not settings.report.is_file():
        raise BadInput("no such file", where=f"--report {settings.report}")
    prompt = formats.read_any(path)
    if isinstance(prompt, Mixture):
        raise ConfigError(
            "PEFT has no mixtures, and a repository holds a PEFT folder",
            where=path,
            do="push its components, one by one",
        )
    if settings.licence is not None:
        prompt = prompt.with_metadata(licence=settings.licence)
    with tempfile.TemporaryDirectory(prefix="sordino-push-") as temporary:
        folder = Path(temporary) / "files"
        name = safe_name(default_name(path)).replace(" ", "-")
        warnings = _write(prompt, folder, name, repository, settings)
        account = _account(repository)
        info = _existing(repository)
        if info is not None and settings.private and not info.private:
            raise ConfigError(
                "this repository is there already, and public",
                where=repository,
                do="leave --private out, or change that on its page",
            )
        yield Prepared(
            repository,
            folder,
            account,
            bool(info.private) if info is not None else settings.private,
            (*formats.file_disclosure(prompt), *([_REPORT_DISCLOSES] if settings.report else [])),
            tuple(warnings),
            (info.sha or "") if info is not None else "",
            _stale(info, folder, overwrite=settings.overwrite) if info is not None else (),
        )


def push(ready: Prepared) -> Pushed:
    """Send it, as one commit: a push that is killed leaves the repository as it was, or empty. Raises HubError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    client = HfApi()
    with hub_errors(ready.repository, "write"), _card_errors(ready.repository):
        if not ready.parent:
            client.create_repo(ready.repository, private=ready.private, exist_ok=True)
        additions = [CommitOperationAdd(name, str(ready.folder / name)) for name in ready.files]
        with _no_bars():
            commit = client.create_commit(
                ready.repository,
                [*additions, *map(CommitOperationDelete, ready.stale)],
                commit_message="Push a soft prompt with Sordino",
                parent_commit=ready.parent or None,
            )
    return Pushed(f"{constants.ENDPOINT}/{ready.repository}", commit.oid, commit.oid != ready.parent)


@contextmanager
def _no_bars() -> Iterator[None]:
    """The client draws four bars for files that are sent in a moment."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _write(prompt: SinglePrompt, folder: Path, name: str, repository: str, settings: PushSettings) -> Sequence[str]:
    """All files of the repository. Returns warnings. Raises BadInput."""
    # The weights stand before BOS in PEFT wherever they were trained; the card says so.
    warnings = formats.write(prompt, folder, to="peft", force=True)
    formats.write(prompt, folder / f"{name}{ENDINGS[prompt.kind]}", force=True)
    text = card(prompt, repository=repository, language=settings.language)
    _check_card(text, repository)
    (folder / CARD).write_bytes(text)
    if settings.report is not None:
        shutil.copyfile(settings.report, folder / REPORT)
    for path in sorted(folder.iterdir()):
        # The native file holds what sordino.json holds.
        if path.suffix in (".json", ".md", ".html") and _TOKEN.search(path.read_bytes()):
            raise BadInput(
                "this looks like it holds an access token of the Hub",
                where=path.name,
                do="take it out of the soft prompt's description, samples or training texts, and revoke the token",
            )
    return warnings


def _check_card(content: bytes, repository: str) -> None:
    """Read the card with the Hub's own classes. Raises BadInput."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(content.decode())
    except Exception as error:
        # What a YAML reader may raise.
        raise BadInput("the Hub's client cannot read the card", where=repository, got=error) from error


@contextmanager
def _card_errors(repository: str) -> Iterator[None]:
    """The Hub checks a card's metadata first; its client raises a ValueError with the Hub's reasons."""
    from huggingface_hub.errors import BadRequestError

    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, BadRequestError):
            raise HubError("the Hub refuses the card's metadata", where=repository, got=error) from error
        raise


def _account(repository: str) -> str:
    with hub_errors(repository, "write"):
        from huggingface_hub import HfApi

        return str(HfApi().whoami()["name"])


def _existing(repository: str) -> Any:
    """The Hub's ModelInfo, or None where there is none yet."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with hub_errors(repository):
        try:
            return HfApi().model_info(repository, files_metadata=True, timeout=30)
        except RepositoryNotFoundError:
            return None


def _stale(info: Any, folder: Path, *, overwrite: bool) -> tuple[str, ...]:
    """Files there that would be another soft prompt beside this one. Raises BadInput where the repository holds other work."""
    there = {one.rfilename: one for one in info.siblings or []}
    if "config.json" in there:
        raise BadInput("this repository holds a model", where=info.id, do="choose another name")
    ours = {path.name for path in folder.iterdir()}
    stale = tuple(name for name in there if name not in ours and looks_like_a_prompt(name))
    kept = [*stale, *([CARD] if CARD in there and _is_edited_there(info, there[CARD].size or 0) else [])]
    if kept and not overwrite:
        raise BadInput(
            "this repository holds what this push would replace or contradict",
            where=info.id,
            got=", ".join(kept[:5]),
            do="choose another name, or --overwrite them: its history keeps them",
        )
    return stale


def _is_edited_there(info: Any, size: int) -> bool:
    from huggingface_hub import hf_hub_download

    if size > _MOST_CARD:
        return True
    with hub_errors(info.id):
        return is_edited(Path(hf_hub_download(info.id, CARD, revision=info.sha)).read_bytes())
