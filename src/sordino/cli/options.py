"""Options that several commands share: the same name, default and help everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from sordino.errors import BadInput, ConfigError
from sordino.library.library import Library, open_library
from sordino.library.outputs import Outputs
from sordino.prompts.attention import LEAST_STRENGTH, MOST_STRENGTH
from sordino.settings import LARGEST_SEED, Setting, offered_of, range_text, settings_of

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Decorator(Protocol):
    """What click.option gives: it returns the function or command that it is put on."""

    def __call__(self, command: Decorated, /) -> Decorated: ...


class _PathType(click.Path):
    """A path. Refuses "", the value of an unset shell variable: it would mean the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return [part for part in super().split_envvar_value(rv) if part]


PATH = _PathType(path_type=Path)


def _library(context: click.Context, parameter: click.Parameter, folders: tuple[Path, ...]) -> Library:

    return open_library(folders)


def library_option() -> Decorator:
    """`library: Library`, of the folders given, else of SORDINO_LIBRARY, else the default one."""
    return click.option(
        "--library",
        multiple=True,
        envvar="SORDINO_LIBRARY",
        show_envvar=True,
        # The command reports one that cannot be read.
        type=_PathType(path_type=Path, readable=False),
        metavar="FOLDER",
        callback=_library,
        help="A folder of soft prompt files; may be repeated: new files go to the first.",
    )


def json_option() -> Decorator:
    """`as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


def force_option() -> Decorator:
    """`force: bool`."""
    return click.option("--force", is_flag=True, help="Accept a soft prompt made for another model of the same width.")


def index_option() -> Decorator:
    """`index: int | None`."""
    return click.option("--index", type=click.IntRange(0), metavar="N", help="Which soft prompt, in a file of several.")


def paths_option(flag: str, name: str, help: str, *, required: bool = False) -> Decorator:
    """`name: tuple[Path, ...]`, of files or folders."""
    return click.option(flag, name, multiple=True, required=required, type=PATH, metavar="PATH", help=help)


def instruction_option(default: str) -> Decorator:
    """`instructions: tuple[str, ...]`. default: what is compared with where none is given. Raises BadInput."""
    return click.option(
        "--instruction",
        "instructions",
        multiple=True,
        metavar="TEXT",
        callback=_instructions,
        help=f"An instruction to compare with; may be repeated.  [default: {default}]",
    )


def _instructions(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    if any(not text.strip() for text in texts):
        raise BadInput("the text is empty", where="--instruction")
    return texts


def output_options(*, out: str = "", name: str = "", picture: str = "", required: bool = False) -> Decorator:
    """`outputs: Outputs`. out, name, picture: the help of those that the command has; required: whether --out must be given."""
    overwrite = click.option("--overwrite", is_flag=True, help="Replace files that exist.")
    options = [
        click.option("--out", "target", required=required, type=PATH, metavar="FILE", help=out) if out else None,
        click.option("--name", metavar="NAME", help=name) if name else None,
        click.option("--picture", type=PATH, metavar="FILE", help=picture) if picture else None,
        overwrite,
    ]
    return option_group("outputs", Outputs, *filter(None, options))


def was_given(flag: str) -> bool:
    """Whether the user wrote an option, by its flag or the name of its parameter."""
    name = flag.removeprefix("--").replace("-", "_")
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def refuse_alone(flag: str, *, needs: str) -> None:
    """Refuse a flag that was given but does nothing without another. Raises ConfigError."""
    if was_given(flag):
        raise ConfigError("this does nothing on its own", where=flag, do=f"give {needs} too, or leave it out")


def refuse_with_resume(what: str, *, besides: Collection[str]) -> None:
    """Refuse a flag that would change what is resumed, `what`; `besides` are parameters that do not. Raises ConfigError."""
    context = click.get_current_context()
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in besides
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise ConfigError(
            f"{what} is resumed with the settings it began with",
            where=", ".join(given),
            do="leave that out, or start a new one",
        )


def option_group(given_as: str, make: Callable[..., Any], *options: Decorator) -> Decorator:
    """Options that a command gets as one value, `given_as`: what `make` gives for their values by name."""
    names = _names_of(options)

    def decorate(command: Decorated) -> Decorated:
        @functools.wraps(command)
        def with_group(*args: Any, **values: Any) -> Any:
            own = {name: values.pop(name) for name in names}
            return command(*args, **values, **{given_as: make(**own)})

        return stacked(*options)(with_group)  # type: ignore[return-value]

    return decorate


def stacked(*options: Decorator) -> Decorator:
    """One decorator in place of several, in the order of the help."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _names_of(options: Sequence[Decorator]) -> list[str]:
    def nothing() -> None: ...

    for option in options:
        nothing = option(nothing)
    return [parameter.name for parameter in nothing.__click_params__]  # type: ignore[attr-defined]


def setting_options(cls: type, *names: str, given_as: str, only_given: bool = False, **defaults: object) -> Decorator:
    """Options for the settings `names` of a settings class, in that order, or for all; the command gets one value, `given_as`.

    That is an instance of the class, or with `only_given` a dict of what the user wrote, for commands whose defaults depend on
    more. Flag, type, choices, default and help come from the fields; one that holds several values may be repeated. defaults: a
    command's own. Raises ConfigError, from the class's own checks.
    """
    settings = offered_of(cls)
    for name, value in defaults.items():
        # A command's own default, which the help then shows.
        each = settings[name]
        settings[name] = replace(each, default=value, about=replace(each.about, shown=""))
    chosen = [settings[name] for name in names or settings]

    def make(**values: Any) -> Any:
        given = {name: value for name, value in values.items() if value is not None}
        if only_given:
            return {name: value for name, value in given.items() if was_given(name)}
        return cls(**{**defaults, **given})

    return option_group(given_as, make, *map(_setting_option, chosen))


def setting_option(cls: type, name: str) -> Decorator:
    """The option for one setting of a settings class."""
    return _setting_option(settings_of(cls)[name])


def _setting_option(each: Setting) -> Decorator:
    help = f"{each.about.help}{_default_text(each)}"
    flags = (each.flag, *filter(None, [each.about.short]), each.name)
    if each.kind is bool:
        return click.option(*flags, is_flag=True, help=help)
    environment: dict[str, Any] = {"envvar": each.about.envvar, "show_envvar": True} if each.about.envvar else {}
    kind: Any = PATH if each.kind is Path else each.kind
    if each.several:
        return click.option(*flags, type=kind, multiple=True, metavar=each.about.unit or None, help=help)
    # The class checks the range, for every caller alike; None means that the user gave no value.
    kind = click.Choice([choice for choice in each.choices if choice]) if each.choices else kind
    kind = _NumberOrWord(each.kind, each.about.zero) if each.about.zero else kind
    return click.option(*flags, type=kind, default=None, metavar=each.about.unit or None, help=help, **environment)


class _NumberOrWord(click.ParamType):  # type: ignore[type-arg]  # older releases of click take no arguments here
    """A number of this kind, or a word for 0."""

    def __init__(self, kind: type, word: str) -> None:
        self._number, self._word = click.types.convert_type(kind), word
        self.name = self._number.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return 0 if value == self._word else self._number.convert(value, param, ctx)


def _default_text(each: Setting) -> str:
    """`  [default: 16; 1 to 256]`, as click writes it."""
    about, value = each.about, each.default
    known = value not in (None, "", ()) and each.kind is not bool
    default = about.shown or (f"{value:g}" if known and each.kind is float else f"{value}" if known else "")
    parts = [f"default: {default}"] if default else []
    # A range that ends at the largest integer is no information.
    parts += [range_text(about)] if about.high is not None and about.high < LARGEST_SEED else []
    return f"  [{'; '.join(parts)}]" if parts else ""


def attention_options(default: str = "") -> tuple[Decorator, Decorator]:
    """`hold` and `strength`: a value, a list for a mixture's components, or None. default: what to say of it in the help."""
    shown = f"  {default}" if default else ""
    return (
        click.option(
            "--hold",
            metavar="T",
            callback=_each(_hold, "a number of tokens, or off"),
            help="Hold a prompt's share of attention from T tokens of text on; off: do not. For a mixture, one for all of its "
            f"components or one for each: T,T,...{shown}",
        ),
        click.option(
            "--strength",
            metavar="S",
            callback=_each(float, "a number"),
            help=f"How much attention text gives a prompt, {LEAST_STRENGTH} to {MOST_STRENGTH:g}; 1: as the model computes it. "
            f"For a mixture, as for --hold.{shown}",
        ),
    )


def _each(kind: Callable[[str], object], expected: str) -> Callable[..., Any]:
    """A callback that reads "128", or "128,off" for a mixture's components. Raises ConfigError."""

    def read(context: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        if text is None:
            return None
        try:
            found = [kind(part.strip()) for part in text.split(",")]
        except ValueError:
            where = parameter.opts[0]
            raise ConfigError("not understood", where=where, expected=expected, got=text) from None
        return found[0] if len(found) == 1 else found

    return read


def _hold(text: str) -> object:
    return text if text == "off" else int(text)


@contextmanager
def naming_flags() -> Iterator[None]:
    """An error about hold or strength names the option."""
    try:
        yield
    except ConfigError as error:
        if error.where in ("hold", "strength"):
            error.where = f"--{error.where}"
        raise
