"""Write a soft prompt to a file, and say what the file cannot hold and what it discloses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from sordino.errors import BadInput, ConfigError
from sordino.formats import kobold, kv_prompts, meta, mixtures, mkultra, npy, peft, safetensors
from sordino.formats.choice import PEFT_KEY
from sordino.formats.model_card import CARD, is_edited
from sordino.formats.torch_files import PICKLE_ENDINGS
from sordino.formats.zips import write_zip
from sordino.prompts.description import placed
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.storage import atomic_file, atomic_folder

# How files of each format of embedding prompts are called; PEFT's is a folder.
WRITABLE: dict[str, str] = {
    "kobold": ".zip",
    "peft": "",
    "mkultra": ".json",
    "npy": ".npy",
    "safetensors": ".safetensors",
}
# Likewise of KV prompts. Both of PEFT's kinds hold the same; programs that train them further freeze a cartridge's first position.
KV_WRITABLE: dict[str, str] = {"kv": ".kv.zip", "peft": "", "cartridge": ""}
_AFTER_BOS = "this soft prompt was trained to stand after BOS"
_ONLY_OURS = "only Sordino reads that from the file"
_IN_PEFT = ("PEFT will put it before BOS, where it works less well", "PEFT ignores that")
# What becomes of a place after BOS, and of hold and strength, in files of each format.
_WHAT_BECOMES_OF = {
    "kobold": ("KoboldAI will put it before BOS, where it works less well", "KoboldAI ignores that"),
    "peft": _IN_PEFT,
    "cartridge": _IN_PEFT,
    "mkultra": ("mkultra does not read that from the file", "mkultra files cannot say so"),
    "npy": ("an .npy file cannot say so",) * 2,
    "safetensors": (_ONLY_OURS, _ONLY_OURS),
}


def write(prompt: SinglePrompt, path: Path, *, to: str | None = None, force: bool = False) -> list[str]:
    """Write `prompt` in one of the formats of WRITABLE, or for a KV prompt KV_WRITABLE, atomically; by default the first of them.

    force: replace an existing file, and write what the format holds only in part. Returns warnings, a line each: what the file
    cannot hold. Raises BadInput (an unknown format, one for another kind of prompt, an existing file, metadata that no file can
    hold, PEFT and a placement that PEFT does not know), StorageError.
    """
    path = Path(path)
    to = _checked_format(prompt, to)
    is_folder = to in ("peft", "cartridge")
    if is_folder and prompt.metadata.placement == "after_bos":
        _check_after_bos(prompt, path, force=force)
    _check_free(path, force=force)
    # Checked before the first byte: a refusal must not touch the disk.
    if isinstance(prompt, KVPrompt):
        if is_folder:
            _write_folder(path, peft.kv_files(prompt, cartridge=to == "cartridge"))
        else:
            _write_members(path, kv_prompts.members_of(prompt), force=force)
    elif is_folder:
        _write_folder(path, peft.files(prompt))
    elif to == "kobold":
        _write_members(path, kobold.members_of(prompt), force=force)
    else:
        pieces = _pieces(prompt, to)
        with atomic_file(path, replace=force) as temporary, open(temporary, "wb") as file:
            file.writelines(pieces)
    return _warnings(prompt.metadata, to)


def format_of_name(path: Path, to: str | None) -> str | None:
    """The format `to`, else the one that a name says: without an ending, it is a folder's. None where it says none.

    Raises ConfigError where they disagree, and for pickles.
    """
    name, endings = path.name.lower(), WRITABLE | KV_WRITABLE
    if name.endswith(PICKLE_ENDINGS):
        raise ConfigError(
            "files of this kind are pickles, which Sordino reads but does not write",
            where=path,
            expected=", ".join(filter(None, endings.values())) + " or a folder",
        )
    # A KV prompt's ending is a zip's, too.
    fits = [one for one, ending in endings.items() if ending and name.endswith(ending)]
    named = max(fits, key=lambda one: len(endings[one]), default=None)
    # Another `to` is refused where it is written.
    if to in endings and named and named != to:
        expected = f"a name in {endings[to] or 'no ending (a folder)'}"
        raise ConfigError("--to and the name disagree", where=path, expected=expected, got=endings[named])
    return to or named or (None if path.suffix else "peft")


def write_mixture(mixture: Mixture, path: Path, *, force: bool = False) -> None:
    """Write a mixture, atomically. force: replace an existing file. Raises BadInput, StorageError."""
    path = Path(path)
    _check_free(path, force=force)
    _write_members(path, mixtures.members_of(mixture), force=force)


def write_any(prompt: StoredPrompt, path: Path, *, to: str | None = None, force: bool = False) -> list[str]:
    """As `write`; for a mixture, which has one format, as `write_mixture`."""
    if not isinstance(prompt, Mixture):
        return write(prompt, path, to=to, force=force)
    write_mixture(prompt, path, force=force)
    return []


def file_disclosure(prompt: StoredPrompt) -> list[str]:
    """What the native file will disclose, a line each, for the user to read before sharing it."""
    known, base = prompt.metadata, prompt.metadata.base
    values = {
        "name": known.name,
        "author": known.author,
        "description": known.description,
        "supported models": ", ".join(known.supported),
        "base model": ", ".join(filter(None, (base.id, base.family, base.fingerprint[:16]))),
        "licence": known.licence,
        "tags": ", ".join(known.tags),
        "rating": known.rating,
        "created": known.created,
        "training recipe": ", ".join(known.training),
        "held-out results": ", ".join(known.heldout),
        "keys of other programs": ", ".join(known.foreign),
    }
    lines = [f"{label}: {value}" for label, value in values.items() if value]
    if known.samples:
        lines.append(f"samples: {len(known.samples)}, texts that the model wrote and the openings they were given")
    if isinstance(prompt, Mixture):
        for index, component in enumerate(prompt.components):
            lines += [f"component {index}, {line}" for line in file_disclosure(component)]
        return lines
    lines.append(f"placement: {placed(prompt)}")
    if isinstance(prompt, KVPrompt):
        lines.append(f"keys and values: {prompt.n_tokens} positions of {prompt.shape}")
        return lines
    lines.append(
        f"the matrix: {prompt.n_tokens} x {prompt.d_model} numbers; the words nearest to them can show what was trained on"
    )
    init = str(known.training.get("init", ""))
    if "excerpt" in init or init == "data":
        lines.append(
            "the matrix began as an excerpt of the training text: its nearest words can still spell parts of it"
        )
    return lines


def _check_free(path: Path, *, force: bool) -> None:
    if not force and os.path.lexists(path):
        what = "there is a folder of this name" if path.is_dir() else "there is a file of this name"
        raise BadInput(what, where=path, do="replace it with --force, or choose another name")


def _pieces(prompt: SoftPrompt, to: str) -> Sequence[bytes]:
    if to == "mkultra":
        return mkultra.pieces(prompt)
    if to == "npy":
        return npy.pieces(prompt.matrix)
    described = {"format": "pt", "sordino": meta.to_bytes(prompt).decode("utf-8")}
    return safetensors.pieces({PEFT_KEY: prompt.matrix}, described)


def _checked_format(prompt: SinglePrompt, to: str | None) -> str:
    """Raises BadInput."""
    formats = KV_WRITABLE if isinstance(prompt, KVPrompt) else WRITABLE
    if to is None:
        return next(iter(formats))
    if to in formats:
        return to
    expected = ", ".join(formats)
    if to in KV_WRITABLE:
        raise BadInput("an embedding prompt has no keys and values of its own", where=to, expected=expected)
    if to in WRITABLE:
        raise BadInput("a KV prompt has no matrix", where=to, expected=expected)
    raise BadInput("not a format that can be written", where=to, expected=expected)


def _check_after_bos(prompt: SinglePrompt, path: Path, *, force: bool) -> None:
    if isinstance(prompt, KVPrompt):
        raise BadInput(
            "these keys are rotated for the positions after BOS, and PEFT puts every soft prompt before it",
            where=path,
            do="train one with --placement start",
        )
    if not force:
        raise BadInput(
            f"{_AFTER_BOS}, and PEFT puts every soft prompt before it",
            where=path,
            do="train one with --placement start, or write this one all the same with --force",
        )


def _write_members(path: Path, members: Sequence[tuple[str, Sequence[bytes]]], *, force: bool) -> None:
    with atomic_file(path, replace=force) as temporary, open(temporary, "wb") as file:
        write_zip(file, members)


def _write_folder(path: Path, files: dict[str, list[bytes]]) -> None:
    readme = path / CARD
    if readme.is_file() and is_edited(readme.read_bytes()):
        raise BadInput(
            "this folder holds other files, which replacing it would delete",
            where=path,
            got=CARD,
            do="choose another path",
        )
    with atomic_folder(path) as temporary:
        for name, pieces in files.items():
            with open(temporary / name, "wb") as file:
                file.writelines(pieces)


def _warnings(known: Metadata, to: str) -> list[str]:
    warnings = []
    if to == "npy":
        nothing = Metadata()
        lost = [
            item.name
            for item in fields(known)
            if item.name != "name" and getattr(known, item.name) != getattr(nothing, item.name)
        ]
        if lost:
            warnings.append(f"an .npy file holds the matrix only: {', '.join(lost)} will be lost")
    if known.placement == "after_bos" and to != "kv":
        warnings.append(f"{_AFTER_BOS}: {_WHAT_BECOMES_OF[to][0]}")
    if not known.attention.plain and to != "kv":
        becomes = _WHAT_BECOMES_OF[to][1]
        warnings.append(f"this soft prompt has {known.attention}: {becomes}, and its effect fades in a long text")
    return warnings
