"""Files that a command will write: whether they can be, checked before hours of computing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from sordino import formats
from sordino.errors import BadInput, ConfigError, StorageError
from sordino.library.names import ENDINGS, checked_name, kind_of_name, without_ending
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import SoftPrompt

PICTURES = (".png", ".svg")
# In the folder of the run that wrote a soft prompt.
REPORT = "report.html"
_ONE = {SoftPrompt.kind: "one soft prompt", KVPrompt.kind: "a KV prompt"}
_FORMATS = formats.WRITABLE | formats.KV_WRITABLE


@dataclass(frozen=True)
class Outputs:
    """What a command may write. target: a soft prompt or mixture. name: what the file says it is called."""

    target: Path | None = None
    picture: Path | None = None
    name: str | None = None
    overwrite: bool = False

    def with_picture(self) -> Outputs:
        """With a picture beside the target, unless another one was named."""
        beside = self.target.with_suffix(PICTURES[0]) if self.target and not self.picture else self.picture
        return replace(self, picture=beside)

    def check(self, kind: str = SoftPrompt.kind) -> None:
        """Raise BadInput where a soft prompt of this kind, or the picture, could not be written."""
        target = self.target
        if target is not None and kind_of_name(target.name) != kind:
            raise BadInput(
                f"{_ONE[kind]} is written as {ENDINGS[kind]}",
                where=target,
                do="name it so; sordino convert has the other formats",
            )
        check_new(target, overwrite=self.overwrite)
        check_picture(self.picture, overwrite=self.overwrite)

    def write(self, prompt: SinglePrompt) -> list[str]:
        """Write the soft prompt. Returns warnings. Raises BadInput for a file that appeared meanwhile, StorageError."""
        assert self.target is not None
        check_new(self.target, overwrite=self.overwrite)
        return formats.write(prompt, self.target, force=True)


def run_folder(out: Path, *, together: bool = False) -> Path:
    """The folder of the run that writes this file: voice.zip and voice.kv.zip have one each. together: for runs that are trained
    together, which are of one kind, so that the ending is left out."""
    name = without_ending(out.name) if together else out.stem
    return out.with_name(f"{name}.run")


def check_new(path: Path | None, *, overwrite: bool) -> None:
    """Raise BadInput where the path is a folder, is in none, or is a file that may not be replaced; StorageError where the folder
    is read-only.
    """
    if path is None:
        return
    folder = path.resolve().parent
    if not folder.is_dir():
        raise BadInput("the folder does not exist", where=path.parent, do="make it first")
    if not os.access(folder, os.W_OK):
        raise StorageError("the folder cannot be written to", where=folder, do="choose another")
    if path.is_dir():
        raise BadInput("this is a folder", where=path, expected="a file name")
    if os.path.lexists(path) and not overwrite:
        raise BadInput(
            "there is a file of this name", where=path, do="replace it with --overwrite, or choose another name"
        )


def mixture_name(path: Path, *, overwrite: bool) -> str:
    """As `check_new`, for a mixture's file: the name that it has in a library."""
    if kind_of_name(path.name) != Mixture.kind:
        expected = f"NAME{ENDINGS[Mixture.kind]}"
        raise BadInput("the name of a mixture's file", where="--out", expected=expected, got=path.name)
    name = checked_name(without_ending(path.name))
    check_new(path, overwrite=overwrite)
    return name


def check_folder(path: Path) -> None:
    """Raise BadInput where a folder of results cannot be made."""
    if path.exists() and not path.is_dir():
        raise BadInput("this is a file", where="--out-dir", expected="a folder", got=path)
    if not path.resolve().parent.is_dir():
        raise BadInput("the folder does not exist", where="--out-dir", got=path.resolve().parent, do="make it first")


def check_picture(path: Path | None, *, overwrite: bool) -> None:
    """As `check_new`, for a picture, whose ending is its kind."""
    if path is not None and path.suffix.lower() not in PICTURES:
        raise BadInput(
            "not a kind of picture", where=path, expected=" or ".join(PICTURES), got=path.suffix or "no ending"
        )
    check_new(path, overwrite=overwrite)


def format_to_write(target: Path, to: str | None) -> str:
    """The format `to`, else that of the name; never one that the name contradicts.

    Raises ConfigError.
    """
    if kind_of_name(target.name) == Mixture.kind:
        raise ConfigError(
            "this is a name of mixtures' files", where="OUT", expected="NAME.zip", got=target, do="leave .mix out"
        )
    found = formats.format_of_name(target, to)
    if found is None:
        raise ConfigError(
            "the name does not say which format to write", where=target, do=f"give --to {'|'.join(_FORMATS)}"
        )
    return found
