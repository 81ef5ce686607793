"""Write a soft prompt to a file, and say what the file cannot hold and what it discloses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from sordino.errors import BadInput
from sordino.formats import kobold, meta, mixtures, mkultra, npy, peft, safetensors
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.storage import atomic_file, atomic_folder

# How files of each format are called; PEFT's is a folder.
WRITABLE: Mapping[str, str] = {
    "kobold": ".zip",
    "peft": "",
    "mkultra": ".json",
    "npy": ".npy",
    "safetensors": ".safetensors",
}
_AFTER_BOS = "this soft prompt was trained to stand after BOS"


def write(prompt: SoftPrompt, path: Path, *, to: str = "kobold", force: bool = False) -> list[str]:
    """Write `prompt` in one of the formats of WRITABLE, atomically. Returns warnings, a line each: what the file cannot hold.

    force: replace an existing file, and write what the format holds only in part. Raises BadInput (an unknown format, an
    existing file, metadata that no file can hold, PEFT and a placement that PEFT does not know), StorageError.
    """
    path = Path(path)
    if to not in WRITABLE:
        raise BadInput("not a format that can be written", where=to, expected=", ".join(WRITABLE))
    if to == "peft" and prompt.metadata.placement == "after_bos" and not force:
        raise BadInput(
            f"{_AFTER_BOS}, and PEFT puts every soft prompt before it",
            where=path,
            do="train one with --placement start, or write this one all the same with --force",
        )
    _check_free(path, force=force)
    if to == "peft":
        _write_folder(path, peft.files(prompt))
    elif to == "kobold":
        # Checked before the first byte: a refusal must not touch the disk.
        meta.to_bytes(prompt)
        with atomic_file(path, replace=force) as temporary, open(temporary, "wb") as file:
            kobold.write(prompt, file)
    else:
        _write_file(path, _pieces(prompt, to), force=force)
    return _warnings(prompt.metadata, to)


def write_mixture(mixture: Mixture, path: Path, *, force: bool = False) -> None:
    """Write a mixture, atomically. force: replace an existing file. Raises BadInput, StorageError."""
    path = Path(path)
    _check_free(path, force=force)
    members = mixtures.members_of(mixture)
    with atomic_file(path, replace=force) as temporary, open(temporary, "wb") as file:
        mixtures.write(members, file)


def write_any(prompt: StoredPrompt, path: Path, *, to: str = "kobold", force: bool = False) -> list[str]:
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
        raise BadInput("there is a file of this name", where=path, do="replace it with --force, or choose another name")


def _pieces(prompt: SoftPrompt, to: str) -> Sequence[bytes]:
    if to == "mkultra":
        return mkultra.pieces(prompt)
    if to == "npy":
        return npy.pieces(prompt)
    return safetensors.pieces(prompt, {"format": "pt", "sordino": meta.to_bytes(prompt).decode("utf-8")})


def _write_file(path: Path, pieces: Sequence[bytes], *, force: bool) -> None:
    with atomic_file(path, replace=force) as temporary, open(temporary, "wb") as file:
        file.writelines(pieces)


def _write_folder(path: Path, files: dict[str, list[bytes]]) -> None:
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
    if known.placement == "after_bos":
        theirs = {
            "kobold": "KoboldAI will put it before BOS, where it works less well",
            "peft": "PEFT will put it before BOS, where it works less well",
            "mkultra": "mkultra does not read that from the file",
            "npy": "an .npy file cannot say so",
            "safetensors": "only Sordino reads that from the file",
        }
        warnings.append(f"{_AFTER_BOS}: {theirs[to]}")
    if not known.attention.plain:
        theirs = {
            "kobold": "KoboldAI ignores that",
            "peft": "PEFT ignores that",
            "mkultra": "mkultra files cannot say so",
            "npy": "an .npy file cannot say so",
            "safetensors": "only Sordino reads that from the file",
        }
        warnings.append(f"this soft prompt has {known.attention}: {theirs[to]}, and its effect fades in a long text")
    return warnings
