"""Commands on soft prompt files: list, show, install, remove, edit, convert."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import err, is_interactive, one_line, out, printable, table, warn
from sordino.cli.descriptions import entry_as_json, entry_as_row, facts, shape, sizes
from sordino.cli.loading import check_fits, loaded_model
from sordino.cli.options import json_option, library_option, model_option
from sordino.errors import ConfigError, DoesNotFit
from sordino.library.names import is_mixture_name, without_ending
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import RATINGS, BaseRef, SoftPrompt

if TYPE_CHECKING:
    from sordino.library.library import Entry, Library

_WRITABLE = {"kobold": ".zip", "peft": "", "mkultra": ".json", "npy": ".npy", "safetensors": ".safetensors"}
_SHOWN_SAMPLES = 5
_PICKLES = (".pt", ".bin", ".pth")


@click.command("list")
@library_option()
@json_option()
def list_(library: Library, as_json: bool) -> None:
    """List the soft prompts in the library.

    A file that cannot be read is listed with the reason.
    """
    entries = library.scan()
    if as_json:
        click.echo(json.dumps([entry_as_json(entry) for entry in entries], indent=2))
        return
    missing = library.missing_folders()
    for folder in missing:
        warn(f"the library folder {folder} {'is not a folder' if os.path.lexists(folder) else 'does not exist'}")
    if len(missing) == len(library.folders):
        return
    if not entries:
        out.print(
            f"The library {library.folders[0]} is empty. Drop .zip files there, or make one with `sordino train`; "
            "`sordino demo` shows how."
        )
    else:
        shown = table("name", "#tokens", "#width", "made for", "description")
        for entry in entries:
            shown.add_row(*entry_as_row(entry), style="red" if entry.error else None)
        out.print(shown)
    others = library.other_files()
    if others:
        names = ", ".join(one_line(path.name) for path in others[:3]) + (", ..." if len(others) > 3 else "")
        err.print(f"Not listed, as only .zip files and folders are: {names}. `sordino install FILE` takes one in.")


@click.command()
@click.argument("prompt", metavar="NAME_OR_PATH")
@click.option("--index", type=click.IntRange(min=0), metavar="N", help="Which one, in a file of several.")
@model_option(default=None)
@library_option()
@json_option()
def show(prompt: str, index: int | None, model: str | None, library: Library, as_json: bool) -> None:
    """Show what a soft prompt says about itself.

    With --model, also how well it fits that model.
    """
    from sordino import formats

    path = library.resolve(prompt)
    loaded = formats.read_any(path, index=index, warn=warn)
    kind = formats.detect(path)
    fit = _fit(model, loaded) if model else {}
    if as_json:
        known = {"path": str(path), "format": kind, **sizes(loaded), **asdict(loaded.metadata)}
        if isinstance(loaded, Mixture):
            # Each component has its own.
            del known["placement"]
        click.echo(json.dumps(known | ({"fit": fit} if fit else {}), indent=2))
        return
    out.print(one_line(loaded.metadata.name) or one_line(without_ending(path.name)), style="bold")
    for label, value in facts(path, kind, loaded):
        out.print(f"  {label:<12} {printable(value).replace(chr(10), chr(10) + ' ' * 15)}")
    if fit:
        out.print(f"  {'fit':<12} {fit['model']}: {fit['kind']} ({fit['reason']})")
    for sample in loaded.metadata.samples[:_SHOWN_SAMPLES]:
        for part in ("prompt", "without", "with"):
            if sample.get(part):
                out.print(f"\n{part}:", style="bold")
                out.print(printable(sample[part]))
    if len(loaded.metadata.samples) > _SHOWN_SAMPLES:
        out.print(f"\nand {len(loaded.metadata.samples) - _SHOWN_SAMPLES} more samples: --json has all")


@click.command()
@click.argument("source", metavar="NAME_OR_PATH")
@click.option("--name", metavar="NAME", help="The name it gets in the library.  [default: the file's]")
@click.option("--index", type=click.IntRange(min=0), metavar="N", help="Which one, in a file of several.")
@click.option("--replace", "replacing", is_flag=True, help="Put it in the place of another one of that name.")
@library_option()
def install(source: str, name: str | None, index: int | None, replacing: bool, library: Library) -> None:
    """Copy a soft prompt into the library.

    Files of any format become a .zip there.
    """
    from sordino import formats
    from sordino.library.names import checked_name, default_name

    path = library.resolve(source)
    loaded = formats.read_any(path, index=index, warn=warn)
    wanted = checked_name(default_name(path) if name is None else name)
    twin = library.twin(loaded)
    if twin and (name is None or twin.name == wanted) and _same_file(twin, loaded):
        out.print(f"Already in the library: {one_line(twin.name)} ({twin.path})")
        return
    entry = library.add(loaded, name=wanted, replace=replacing)
    out.print(f"Installed {one_line(entry.name)}: {shape(loaded)} ({entry.path})")
    if twin and twin.path != entry.path:
        what = "mixture" if isinstance(loaded, Mixture) else "matrix"
        out.print(f"{one_line(twin.name)} in the library is the same {what}.")
    out.print(f'Use it: sordino generate "Some text" --soft-prompt "{one_line(entry.name)}"')


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@library_option()
def remove(names: tuple[str, ...], yes: bool, library: Library) -> None:
    """Take a soft prompt out of the library.

    Its file goes to the hidden folder .trash there, from where it can be put back by hand.
    """
    entries = {entry.path: entry for entry in map(library.entry, names)}
    if not yes:
        if not is_interactive():
            raise ConfigError("nobody is here to be asked", where="remove", do="add --yes")
        listed = ", ".join(one_line(entry.name) for entry in entries.values())
        click.confirm(f"Remove {listed} from the library?", abort=True)
    for entry in entries.values():
        place = library.remove(entry)
        out.print(f"Removed {one_line(entry.name)}; the file is now {place}")


@click.command()
@click.argument("prompt", metavar="NAME_OR_PATH")
@click.option("--name", help="The name it shows; the file keeps its own.")
@click.option("--author", help="Who made it.")
@click.option("--description", help="What it does to a text.")
@click.option("--licence", help="For instance CC-BY-4.0.")
@click.option("--tags", metavar="TAG,TAG", help='Separated by commas; "" for none.')
@click.option("--rating", type=click.Choice([*RATINGS, ""]), help='"" for none.')
@click.option("--supported", metavar="MODEL,MODEL", help="Names of models it works with, separated by commas.")
@click.option("--base", metavar="MODEL", help='What its base model is called, as on the Hub; "" for none.')
@library_option()
def edit(prompt: str, library: Library, **given: str | None) -> None:
    """Change a soft prompt's name, description or other metadata.

    The matrix in its .zip stays as it is.
    """
    from sordino import formats
    from sordino.library.library import edit as edit_file

    changes: dict[str, Any] = {
        key: _list_of(value) if key in ("tags", "supported") else value
        for key, value in given.items()
        if value is not None
    }
    if not changes:
        raise ConfigError("nothing to change", where="edit", do="give one of " + ", ".join(f"--{key}" for key in given))
    path = library.resolve(prompt)
    if "base" in changes:
        changes["base"] = replace(formats.read_any(path).metadata.base, id=changes["base"])
    edited = edit_file(path, changes)
    for key in changes:
        value = edited.metadata.base.id if key == "base" else getattr(edited.metadata, key)
        out.print(f"{key}: {one_line(', '.join(value) if isinstance(value, tuple) else value) or '(none)'}")
    out.print(f"Wrote {path}")


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(list(_WRITABLE)), help="The format of OUT.  [default: what its name says]")
@click.option("--index", type=click.IntRange(min=0), metavar="N", help="Which one, in a file of several.")
@model_option(default=None)
@click.option("--force", is_flag=True, help="Replace OUT, and write what the format can only hold in part.")
@library_option()
def convert(
    source: str, target: Path, to: str | None, index: int | None, model: str | None, force: bool, library: Library
) -> None:
    """Rewrite a soft prompt in another format.

    OUT is a .zip (KoboldAI's and Sordino's own), .json (mkultra), .npy, .safetensors, or a folder (PEFT). IN is a file
    of any of these or of the older .pt and .bin kinds, or a name in the library. With --model, OUT says what base model
    it is for where IN does not.
    """
    from sordino import formats

    kind = _format_of(target, to)
    path = library.resolve(source)
    if formats.detect(path) == "mixture":
        raise ConfigError(
            "no other format holds a mixture",
            where=path,
            do="copy the file as it is, or convert its components, which are native .zip files in it: unzip it",
        )
    loaded = formats.read(path, index=index, warn=warn)
    if model:
        loaded = _made_for(model, loaded, force=force)
    for warning in formats.write(loaded, target, to=kind, force=force):
        warn(warning)
    out.print(f"Wrote {target}: {kind}, {shape(loaded)}")


def _format_of(target: Path, to: str | None) -> str:
    """The format to write: what `to` says, else what the name says; never against what the name says."""
    suffix = target.suffix.lower()
    if is_mixture_name(target.name):
        raise ConfigError(
            "this is a name of mixtures' files", where="OUT", expected="NAME.zip", got=target, do="leave .mix out"
        )
    if suffix in _PICKLES:
        raise ConfigError(
            "files of this kind are pickles, which Sordino reads but does not write",
            where=target,
            expected=", ".join(filter(None, _WRITABLE.values())) + " or a folder",
        )
    said = next((kind for kind, ending in _WRITABLE.items() if ending == suffix), None)
    if to is None and said is None:
        raise ConfigError(
            "the name does not say which format to write", where=target, do=f"give --to {'|'.join(_WRITABLE)}"
        )
    if to and suffix and said and said != to:
        raise ConfigError(
            "--to and the name disagree",
            where=target,
            expected=f"a name in {_WRITABLE[to] or 'no ending (a folder)'}",
            got=suffix,
        )
    return to or said or ""


def _made_for(model: str, prompt: SoftPrompt, *, force: bool) -> SoftPrompt:
    """`prompt`, with the base model and the supported names filled in where its file did not say them."""
    base = loaded_model(model, dtype=None, device="cpu")
    check_fits(base, prompt.metadata.name, prompt, force=force)
    said = prompt.metadata.base
    if said.id and base.id and said.id != base.id and not force:
        raise DoesNotFit(
            "the file already says that it was made for another base model",
            where="--model",
            expected=said.id,
            got=base.id,
            do="leave --model out, or fill in what the file does not say with --force",
        )
    # All but the fingerprint: that a file was made on these very weights is for its maker to say.
    known_of = {item.name: getattr(said, item.name) or getattr(base.ref, item.name) for item in fields(said)}
    prompt = prompt.with_metadata(base=BaseRef(**known_of | {"fingerprint": said.fingerprint}))
    # Its id, never what the user called it: that may be a path.
    known = (base.id,) if base.id else ()
    return prompt.with_metadata(supported=prompt.metadata.supported or known)


def _fit(model: str, prompt: StoredPrompt) -> dict[str, str]:
    base = loaded_model(model, dtype=None, device="cpu")
    fit = base.fit(prompt)
    return {"model": base.name, "kind": fit.kind, "reason": fit.reason}


def _same_file(twin: Entry, prompt: StoredPrompt) -> bool:
    """Whether nothing would be gained by another copy: the metadata agrees, but for a name that `prompt` may lack."""
    return replace(prompt.metadata, name=prompt.metadata.name or twin.metadata.name) == twin.metadata


def _list_of(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
