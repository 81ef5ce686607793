"""Several voices as they were asked for: NAME=PATH for each, and one folder that gets their files. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sordino.errors import BadInput, ConfigError
from sordino.library.names import checked_name
from sordino.library.outputs import check_folder

# In the folder that they go on from: the voices' names, in order.
GROUP = "group.json"
FOLDER = "together.run"
# What belongs to one soft prompt, or to one voice's texts.
_ALONE = (("out", "--out"), ("name", "--name"), ("heldout", "--heldout"))


def check_voices(options: Mapping[str, Any]) -> dict[str, Path]:
    """The texts of each voice by its name. Raises BadInput, ConfigError."""
    if options["out_dir"] is None:
        raise ConfigError("there is no folder to write the voices to", where="--voice", do="add --out-dir FOLDER")
    if not options["voices"]:
        raise ConfigError(
            "this is for several voices", where="--out-dir", do="give --voice NAME=PATH, or use --out FILE"
        )
    if options["data"]:
        raise ConfigError(
            "both DATA and --voice were given", where=options["data"][0], do="give every voice as --voice NAME=PATH"
        )
    for key, flag in _ALONE:
        if options[key]:
            raise ConfigError("this is for one soft prompt, not for several voices", where=flag, do="leave it out")
    check_folder(options["out_dir"])
    voices: dict[str, Path] = {}
    for said in options["voices"]:
        name, path = _voice(said)
        # Files whose names differ only in case are one file on some systems.
        if name.casefold() in {known.casefold() for known in voices}:
            raise BadInput("two voices have one name", where=f"--voice {name}", do="give each its own")
        voices[name] = path
    return voices


def _voice(said: str) -> tuple[str, Path]:
    name, equals, path = said.partition("=")
    if not equals or not path:
        raise BadInput("a voice is a name and its texts", where="--voice", expected="NAME=PATH", got=said)
    try:
        name = checked_name(name)
    except BadInput as error:
        raise BadInput(
            "a voice cannot have this name", where=f"--voice {said}", got=error.got, do="choose another"
        ) from None
    if f"{name}.run".casefold() == FOLDER:
        raise BadInput("a voice cannot have this name", where=f"--voice {said}", got="ours", do="choose another")
    if not Path(path).exists():
        raise BadInput("no such file or folder", where=f"--voice {said}", do="check the spelling")
    return name, Path(path)
