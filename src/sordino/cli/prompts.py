"""Commands on soft prompt files: show, install, remove, edit, convert, sources."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from sordino import formats
from sordino.cli.console import check_confirmable, note, one_line, out, print_json, printable, show_table, warn
from sordino.cli.gallery import install_located
from sordino.cli.loading import ModelChoice, PromptChoice, named_model_option
from sordino.cli.options import PATH, attention_options, index_option, json_option, library_option, naming_flags
from sordino.errors import BadInput, ConfigError
from sordino.library.editing import edit as edit_file
from sordino.library.hub_names import PREFIX
from sordino.library.installing import Wanted
from sordino.library.library import Library
from sordino.library.names import without_ending
from sordino.library.origins import origin_of
from sordino.library.outputs import format_to_write
from sordino.models.bundled import DEFAULT_MODEL
from sordino.prompts.description import facts, made_for, shape, sizes
from sordino.prompts.fit import made_for as filled_in
from sordino.prompts.fit import stated_by
from sordino.prompts.mixture import Mixture, StoredPrompt, components_of
from sordino.prompts.similarity import ranked_sources
from sordino.prompts.soft_prompt import RATINGS, SoftPrompt

_SHOWN_SAMPLES = 5
_HOLD, _STRENGTH = attention_options()


@click.command()
@click.argument("prompt", metavar="NAME_OR_PATH")
@index_option()
@named_model_option()
@library_option()
@json_option()
def show(prompt: str, index: int | None, model: ModelChoice, library: Library, as_json: bool) -> None:
    """Show what a soft prompt says about itself.

    With --model, also how well it fits that model.
    """
    path = library.resolve(prompt)
    loaded = formats.read_any(path, index=index, warn=warn)
    kind = formats.detect(path)
    fit = _fit(model, loaded) if model.model else {}
    if as_json:
        known = {"path": str(path), "format": kind, **sizes(loaded), **asdict(loaded.metadata)}
        if isinstance(loaded, Mixture):
            # Each component has its own.
            del known["placement"], known["attention"]
        print_json(known | ({"fit": fit} if fit else {}))
        return
    out.print(one_line(loaded.metadata.name) or one_line(without_ending(path.name)), style="bold")
    for label, value in facts(path, kind, loaded):
        out.print(f"  {label:<12} {printable(value).replace(chr(10), chr(10) + ' ' * 15)}")
    if origin := origin_of(library.folders[0], loaded.content_hash):
        out.print(f"  {'from':<12} {one_line(str(origin))}")
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
@click.argument("source", metavar="SOURCE")
@click.option("--name", metavar="NAME", help="Its name in the library.  [default: the file's]")
@index_option()
@click.option("--replace", "replacing", is_flag=True, help="Replace another soft prompt of that name.")
@library_option()
def install(source: str, name: str | None, index: int | None, replacing: bool, library: Library) -> None:
    """Copy a soft prompt into the library, from a file, a gallery or the Hugging Face Hub.

    SOURCE is a file, a folder or a name; NAME@GALLERY (`sordino gallery`); https://.../voice.zip, which may end in #sha256=HASH; or
    hf:USER/NAME[@REVISION], a repository of the Hugging Face Hub, as `sordino search` lists them. Files of any format become
    a .zip there, KV prompts a .kv.zip, mixtures a .mix.zip.
    """
    wanted = Wanted(name, index, replacing)
    if source.startswith(PREFIX):
        from sordino.cli.hub import install_shown

        found = install_shown(library, source, wanted)
    else:
        found = install_located(source, library, wanted)
    entry, loaded = found.entry, found.prompt
    if not found.new:
        out.print(f"Already in the library: {one_line(entry.name)} ({entry.path})")
        return
    out.print(f"Installed {one_line(entry.name)}: {shape(loaded)} ({entry.path})")
    if found.twin:
        what = "matrix" if isinstance(loaded, SoftPrompt) else loaded.kind
        out.print(f"{one_line(found.twin.name)} in the library is the same {what}.")
    _show_use(one_line(entry.name), loaded)


def _show_use(name: str, prompt: StoredPrompt) -> None:
    """A command that works here, or which model is missing."""
    from sordino.models.catalogue import fitting_here, sizes_here, suggestion

    parts = [stated_by(part) for part in components_of(prompt)]
    here = sizes_here()
    fitting = fitting_here(parts, here)
    if not fitting:
        out.print(f"Made for {one_line(made_for(prompt.metadata, prompt.d_model))}.")
        known = suggestion(parts, here)
        size = f" ({known.download / 1e9:.0f} GB)" if known and known.download else ""
        fetched = f", which --model {one_line(known.name)} fetches{size}" if known and known.download != 0 else ""
        out.print(f"None of the models here fits it ({', '.join(map(one_line, here))}): use it with that one{fetched}.")
        return
    model = "" if DEFAULT_MODEL in fitting else f" --model {one_line(fitting[0])}"
    out.print(f'Use it: sordino generate "Some text"{model} --soft-prompt "{name}"')


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
        check_confirmable("remove")
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
@click.option("--base", metavar="MODEL", help='The name of its base model, as on the Hub; "" for none.')
@_HOLD
@_STRENGTH
@library_option()
def edit(prompt: str, library: Library, **given: Any) -> None:
    """Change a soft prompt's name, description or other metadata, or how much attention text gives it.

    The prompt itself stays as it is.
    """
    changes = {key: value for key, value in given.items() if value is not None}
    for key in changes.keys() & {"tags", "supported"}:
        changes[key] = tuple(filter(None, map(str.strip, changes[key].split(","))))
    if not changes:
        raise ConfigError("nothing to change", where="edit", do="give one of " + ", ".join(f"--{key}" for key in given))
    path = library.resolve(prompt)
    with naming_flags():
        edited = edit_file(path, changes)
    if changes.keys() & {"hold", "strength"}:
        parts = [str(part.metadata.attention) for part in components_of(edited)]
        out.print(f"attention: {'; '.join(parts)}")
    for key in [key for key in changes if key not in ("hold", "strength")]:
        value = edited.metadata.base.id if key == "base" else getattr(edited.metadata, key)
        out.print(f"{key}: {one_line(', '.join(value) if isinstance(value, tuple) else value) or '(none)'}")
    out.print(f"Wrote {path}")


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=PATH)
@click.option(
    "--to",
    type=click.Choice(list(formats.WRITABLE | formats.KV_WRITABLE)),
    help="The format of OUT.  [default: what its name says]",
)
@index_option()
@named_model_option()
@click.option("--force", is_flag=True, help="Replace OUT, and write what the format can only hold in part.")
@library_option()
def convert(
    source: str, target: Path, to: str | None, index: int | None, model: ModelChoice, force: bool, library: Library
) -> None:
    """Rewrite a soft prompt in another format.

    OUT is a .zip (KoboldAI's and Sordino's own), .json (mkultra), .npy, .safetensors, or a folder (PEFT); of a KV prompt a .kv.zip
    or a folder (PEFT: prefix tuning, or a cartridge with --to cartridge). IN is a name in the library, or a file of any of these
    kinds or of the older .pt and .bin. With --model, OUT says what base model it is for where IN does not.
    """
    kind = format_to_write(target, to)
    path = library.resolve(source)
    if formats.detect(path) == "mixture":
        raise ConfigError(
            "no other format holds a mixture",
            where=path,
            do="copy the file as it is, or unzip it and convert its components, which are separate files",
        )
    loaded = formats.read_single(path, index=index, warn=warn)
    if model.model:
        given = PromptChoice((source,), library, force)
        base = given.load_model(replace(model, device="cpu"), {loaded.metadata.name: loaded})
        loaded = filled_in(loaded, base.ref, force=force)
    warn(*formats.write(loaded, target, to=kind, force=force))
    out.print(f"Wrote {target}: {kind}, {shape(loaded)}")


@click.command()
@click.argument("target", metavar="TARGET")
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@library_option()
@json_option()
def sources(target: str, prompts: tuple[str, ...], library: Library, as_json: bool) -> None:
    """Rank soft prompts as starting points for another.

    TARGET is a soft prompt of the task or voice in question, trained for a few steps: the more similar another one is, the likelier
    `sordino train --init file:...` is to gain from it. PROMPTs are names or files; by default, all soft prompts of the library
    that were made for the same base model.
    """
    own = formats.read(library.resolve(target))
    found, notes = (PromptChoice(prompts, library).load(), []) if prompts else library.comparable_to(own)
    note(*notes)
    if not found:
        raise BadInput("the library has no other soft prompt of this base model", where=target)
    ranked = ranked_sources(own, found)
    if as_json:
        rows = [{"source": each.label, "per_token": each.per_token, "pooled": each.pooled} for each in ranked]
        print_json({"target": target, "sources": rows})
        return
    cells = ([each.label, f"{each.per_token:+.3f}", f"{each.pooled:+.3f}"] for each in ranked)
    show_table(["start from", "#per token", "#pooled"], cells)
    out.print(
        f"Cosines with {one_line(target)}: mean over all pairs of vectors, and of the mean vectors (arXiv 2110.07904)."
    )
    out.print("The first one is the likeliest to help; only a training run shows whether it does.")


def _fit(model: ModelChoice, prompt: StoredPrompt) -> dict[str, str]:
    base = replace(model, device="cpu").load()
    fit = base.fit(prompt)
    return {"model": base.name, "kind": fit.kind, "reason": fit.reason}
