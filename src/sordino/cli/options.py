"""Options that several commands share: the same name, default and help everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from sordino.errors import ConfigError

if TYPE_CHECKING:
    from sordino.library.library import Library

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Decorator(Protocol):
    """What click.option gives: it returns the function or command that it is put on."""

    def __call__(self, command: Decorated, /) -> Decorated: ...


DTYPES = ("float32", "bfloat16", "float16")


def _library(context: click.Context, parameter: click.Parameter, folders: tuple[Path, ...]) -> Library:
    from sordino.library.library import open_library

    return open_library(folders)


def model_option(default: str | None = "smollm2") -> Decorator:
    """`model: str`. Without a default, `model: str | None`."""
    return click.option(
        "--model",
        "-m",
        default=default,
        show_default=default is not None,
        metavar="MODEL",
        help="The base model: smollm2 (bundled), a folder, a .gguf file, or a Hugging Face Hub id.",
    )


def library_option() -> Decorator:
    """`library: Library`, of the folders given, else of SORDINO_LIBRARY, else the default one."""
    return click.option(
        "--library",
        multiple=True,
        envvar="SORDINO_LIBRARY",
        show_envvar=True,
        # An unreadable one is for the command to tell of.
        type=click.Path(path_type=Path, readable=False),
        metavar="FOLDER",
        callback=_library,
        help="A folder of soft prompt files; may be repeated, the first one is written to.",
    )


def device_option() -> Decorator:
    """`device: str | None`."""
    return click.option(
        "--device", metavar="DEVICE", help="cpu, cuda, cuda:N or mps.  [default: a GPU where there is one, else cpu]"
    )


def dtype_option() -> Decorator:
    """`dtype: str | None`."""
    return click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="Number type of the base model; soft prompts are always float32.  "
        "[default: bfloat16 on an NVIDIA GPU that has it, else float32]",
    )


# What every generator takes.
LARGEST_SEED = 2**63 - 1


def seed_option(default: int = 0) -> Decorator:
    """`seed: int`."""
    return click.option(
        "--seed",
        type=click.IntRange(0, LARGEST_SEED),
        default=default,
        show_default=True,
        metavar="N",
        help="The same seed gives the same result on the same machine.",
    )


def was_given(flag: str) -> bool:
    """Whether the user wrote an option, by its flag or the name of its parameter."""
    name = flag.removeprefix("--").replace("-", "_")
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_alone(flag: str, *, needs: str) -> None:
    """Refuse a flag that was given but does nothing without another. Raises ConfigError."""
    if was_given(flag):
        raise ConfigError("this does nothing by itself", where=flag, do=f"give {needs} too, or leave it out")


def json_option() -> Decorator:
    """`as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def base_model_options(command: Decorated) -> Decorated:
    """Of a command that runs a base model and prints: `model`, `device`, `dtype`, `library` and `as_json`, as above."""
    for option in (json_option(), library_option(), dtype_option(), device_option(), model_option()):
        command = option(command)
    return command
