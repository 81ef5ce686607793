"""Options that several commands share: the same name, default and help everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from sordino.errors import ConfigError
from sordino.settings import LARGEST_SEED, Setting, offered_of

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


def refuse_with_resume(what: str, *, besides: Collection[str]) -> None:
    """Refuse a flag that would change what goes on, `what`; `besides` are parameters that do not. Raises ConfigError."""
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in besides
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            f"{what} that is resumed goes on as it began",
            where=", ".join(given),
            do="leave that out, or start a new one",
        )


def json_option() -> Decorator:
    """`as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def base_model_options(command: Decorated) -> Decorated:
    """Of a command that runs a base model and prints: `model`, `device`, `dtype`, `library` and `as_json`, as above."""
    for option in (json_option(), library_option(), dtype_option(), device_option(), model_option()):
        command = option(command)
    return command


def setting_options(cls: type, *names: str, given_as: str, only_given: bool = False) -> Decorator:
    """Options for the settings `names` of a settings class, in that order, or for all; the command gets one value, `given_as`.

    That is an instance of the class, or with `only_given` a dict of what the user wrote, for commands whose defaults depend on
    more. Flag, type, choices, default and help come from the fields. Raises ConfigError, from the class's own checks.
    """
    settings = offered_of(cls)
    chosen = {name: settings[name] for name in names or settings}

    def decorate(command: Decorated) -> Decorated:
        @functools.wraps(command)
        def with_settings(*args: Any, **options: Any) -> Any:
            values = {name: options.pop(name) for name in chosen}
            given = {name: value for name, value in values.items() if value is not None}
            if only_given:
                given = {name: value for name, value in given.items() if was_given(name)}
            return command(*args, **options, **{given_as: given if only_given else cls(**given)})

        for each in reversed(chosen.values()):
            with_settings = _setting_option(each)(with_settings)
        return with_settings  # type: ignore[return-value]

    return decorate


def _setting_option(each: Setting) -> Decorator:
    default = each.about.shown or ("" if each.default in (None, "", False) else f"{each.default}")
    help = each.about.help + (f"  [default: {default}]" if default else "")
    if each.kind is bool:
        return click.option(each.flag, is_flag=True, help=help)
    # The range is checked by the class, for every caller alike; None says that the user wrote nothing.
    kind: Any = click.Choice([choice for choice in each.choices if choice]) if each.choices else each.kind
    return click.option(each.flag, type=kind, default=None, metavar=each.about.unit or None, help=help)
