"""What a repository of soft prompts on the Hugging Face Hub is called, and errors that name it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sordino.errors import BadInput, HubError, SordinoError

PREFIX = "hf:"
_REFERENCE = re.compile(r"hf:(?P<repository>[^/@]+/[^/@]+)(?:/(?P<file>[^/@]+))?(?:@(?P<revision>.+))?")
# Of the longest path that is a name in a cache of files; the Hub's own names are shorter.
_LONGEST = 200


@dataclass(frozen=True)
class HubReference:
    """`hf:USER/NAME[/FILE][@REVISION]`. file: one of several in the repository. revision: a branch, a tag or a commit."""

    repository: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{PREFIX}{self.repository}{file}{f'@{self.revision}' if self.revision else ''}"


def parse_reference(text: str) -> HubReference:
    """Raises BadInput."""
    found = _REFERENCE.fullmatch(text)
    if found is None or len(text) > _LONGEST or not text.isprintable():
        raise BadInput(
            "not a repository of the Hugging Face Hub", where=text[:_LONGEST], expected="hf:USER/NAME[/FILE][@REVISION]"
        )
    return HubReference(checked_repository(found["repository"]), found["revision"] or "", found["file"] or "")


def checked_repository(name: str) -> str:
    """USER/NAME, as the Hub allows it. Raises BadInput."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        valid = False
    else:
        valid = name.count("/") == 1
    if not valid:
        raise BadInput("no name of a repository on the Hugging Face Hub", where=name[:_LONGEST], expected="USER/NAME")
    return name


@contextmanager
def hub_errors(where: object, verb: str = "read") -> Iterator[None]:
    """What the Hub and the way to it raise, as HubError. verb: what was to be done with the repository."""
    try:
        yield
    except SordinoError:
        raise
    # Its HTTP clients and its Rust code raise many types of errors. Their texts are left out: they may quote what was sent.
    except Exception as error:
        what, got, do = _explained(error, verb)
        raise HubError(what, where=where, got=got, do=do) from error


def _explained(error: Exception, verb: str) -> tuple[str, str, str]:
    """what, got, do."""
    from huggingface_hub import errors

    from sordino.models.hub_answers import refusal

    # A gated repository's error is one of a missing repository's kind, so it comes first.
    known: tuple[tuple[type[Exception], str, str], ...] = (
        (errors.OfflineModeIsEnabled, "the Hub is switched off (HF_HUB_OFFLINE)", "unset it, or use a file"),
        (
            errors.GatedRepoError,
            "its author lets only accounts in that accepted their terms",
            "accept them on the repository's page, run `hf auth login`, and try again",
        ),
        (
            errors.RepositoryNotFoundError,
            "no such repository on the Hugging Face Hub, or one that this account may not see",
            "look at the spelling; for a private one run `hf auth login`",
        ),
        (
            errors.RevisionNotFoundError,
            "the repository has no such revision",
            "give a branch, a tag or a commit of it",
        ),
        (errors.RemoteEntryNotFoundError, "the repository has no such file", "look at its page"),
        (errors.LocalTokenNotFoundError, "this needs an account of the Hugging Face Hub", "run `hf auth login`"),
    )
    for kind, what, do in known:
        if isinstance(error, kind) or isinstance(error.__cause__, kind):
            return what, "", do
    return refusal(error, "repository", verb) or (
        "the Hugging Face Hub cannot be reached",
        type(error).__name__,
        "try again with a network",
    )
