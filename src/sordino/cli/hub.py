"""push, search, and what `install` does with `hf:USER/NAME`: soft prompts on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sordino.cli.console import check_confirmable, err, note, one_line, out, print_json, show_table, warn
from sordino.cli.loading import ModelChoice, named_model_option
from sordino.cli.options import PATH, json_option, library_option
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError
from sordino.library import hub, hub_push
from sordino.library.hub import HubListing
from sordino.library.hub_names import parse_reference
from sordino.library.installing import Installed, Wanted
from sordino.library.library import Library
from sordino.library.outputs import REPORT, run_folder
from sordino.models.sizes import sizes_of


@click.command()
@click.argument("words", metavar="[WORD]...", nargs=-1)
@named_model_option()
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many are listed at most."
)
@json_option()
def search(words: tuple[str, ...], model: ModelChoice, limit: int, as_json: bool) -> None:
    """Search the Hugging Face Hub for soft prompts.

    Lists repositories with the tag soft-prompt whose names or cards hold all WORDs. With --model, only those that may fit that
    model, as far as their cards say.
    """
    sizes = sizes_of(model.model) if model.model else None
    # What does not fit the model must not use up the limit.
    listed = hub.search(" ".join(words), limit=limit if sizes is None else hub.MOST_LISTED)
    fits = [(one, "" if sizes is None else str(sizes.fit([one.claims.stated]).kind)) for one in listed]
    found = [(one, fit) for one, fit in fits if fit != "no"][:limit]
    if as_json:
        print_json([_row(one) | ({"fit": fit} if fit else {}) for one, fit in found])
    elif not found:
        out.print(
            "No soft prompt on the Hugging Face Hub has these words"
            + (f" and fits {model.model}." if model.model else ".")
        )
    else:
        show_table(["install", "base model", "fit", "#tokens", "#downloads", "tags"], (_cells(*each) for each in found))
        err.print(
            "What cards say, unchecked. `sordino install hf:USER/NAME` installs one, `sordino show` says how well it fits."
        )


def _cells(one: HubListing, fit: str) -> list[str]:
    claims, marks = one.claims, ["gated"] if one.gated else []
    numbers = [str(claims.n_tokens or ""), str(one.downloads)]
    return [
        str(one.reference),
        claims.base_model or "not said",
        fit,
        *numbers,
        ", ".join([*marks, *map(one_line, one.own_tags)]),
    ]


def install_shown(library: Library, source: str, wanted: Wanted) -> Installed:
    """Install from the Hub, with a bar, and print what came from where."""
    listing = hub.describe(parse_reference(source))
    reference = listing.reference
    names = ", ".join(file.name for file in listing.files)
    note(f"{reference.repository} at commit {reference.revision}: {names}, {listing.size:,} bytes")
    with measuring_bar("Downloading") as progress:
        found = hub.install_from_hub(library, listing, wanted, warn=warn, progress=progress)
    note(f"sha256 {found.origin.sha256 if found.origin else ''}, content hash {found.prompt.content_hash}")
    warn(*hub.contradictions(listing.claims, found.prompt))
    named = one_line(listing.claims.base_model)
    if named and not found.prompt.metadata.base.id:
        out.print(f"The repository's card names the base model {named}, which --model {named} fetches.")
    return found


def _row(listing: HubListing) -> dict[str, object]:
    claims = listing.claims
    return {
        "reference": str(listing.reference),
        "name": claims.name,
        "description": claims.description,
        "author": listing.author,
        "base_model": claims.base_model,
        "licence": claims.licence,
        "rating": claims.rating,
        "kind": claims.kind,
        "tokens": claims.n_tokens,
        "downloads": listing.downloads,
        "likes": listing.likes,
        "gated": listing.gated,
        "tags": list(listing.tags),
    }


@click.command()
@click.argument("prompt", metavar="NAME_OR_PATH")
@click.argument("repository", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make a repository that only you and your organisation see.")
@click.option("--licence", help="In place of the file's: for instance CC-BY-4.0.")
@click.option("--language", default="", metavar="CODE", help="Of the texts that it writes: en, de, ...")
@click.option(
    "--report", type=PATH, metavar="FILE", help="Its report.  [default: report.html of its run, if there is one]"
)
@click.option("--no-report", "bare", is_flag=True, help="Send no report.")
@click.option(
    "--overwrite", is_flag=True, help="Replace an edited card, and remove other soft prompts from the repository."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@library_option()
def push(prompt: str, repository: str, library: Library, yes: bool, bare: bool, **given: Any) -> None:
    """Publish a soft prompt on the Hugging Face Hub.

    The repository gets PEFT's files, the native file, the run's report and a model card made from the file. What that discloses is
    shown first. The account is that of `hf auth login`, or of HF_TOKEN.
    """
    path = library.resolve(prompt)
    if bare and given["report"]:
        raise ConfigError("these contradict each other", where="--report, --no-report", do="give one of them")
    report = None if bare else given.pop("report") or _report_of(path)
    settings = hub_push.PushSettings(**given | {"report": report})
    if not yes:
        check_confirmable("push")
    with hub_push.prepared(path, repository, settings) as ready:
        seen = "private" if ready.private else "public: everybody can read it"
        err.print(f"To {ready.repository} ({seen}), as {one_line(ready.account)}:")
        for name, size in ready.files.items():
            err.print(f"  {name}  {size:,} bytes")
        for name in ready.stale:
            err.print(f"  {one_line(name)} there is removed")
        err.print("This will disclose:")
        for line in ready.disclosure:
            err.print(f"  {one_line(line)}")
        warn(*ready.warnings)
        if not yes:
            click.confirm("Send it?", abort=True, err=True)
        pushed = hub_push.push(ready)
    out.print(f"{'Pushed' if pushed.new else 'Already there'}: {pushed.address} at commit {pushed.commit}")
    out.print(f"Others install it: sordino install hf:{ready.repository}")


def _report_of(path: Path) -> Path | None:
    """The report of the run that wrote this file, where it lies beside it."""
    report = run_folder(path) / REPORT
    return report if report.is_file() else None
