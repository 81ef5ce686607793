"""Settings as fields of frozen dataclasses. Each field says what it means and which values it may have.

The checks, the command line's options, the page's form and the documents are made from the same fields, so a range or a help
text stands in one place. Modules that define settings import no torch: `sordino train --help` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sordino.errors import ConfigError

Value = TypeVar("Value")
_KEY = "setting"
# What every random generator takes.
LARGEST_SEED = 2**63 - 1
_TYPES: Mapping[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    Path: "a path",
}
# Not by isinstance: True is an int, too.
_ACCEPTED: Mapping[type, tuple[type, ...]] = {float: (int, float), Path: (type(Path()),)}
SEED_HELP = "The same seed gives the same result on the same machine."


@dataclass(frozen=True)
class About:
    """help: one sentence. low, high: smallest and largest value. above: a bound that is itself not allowed. label: its name in a
    form. shown: what to say of a default that is worked out at run time. unit: what the command line shows in place of a value,
    for instance N. flag: where it is not the field's name. short: a second, short flag, for instance -n. envvar: the environment
    variable that gives it where no flag does. offered: whether commands and forms have it; if not, only its range is checked.
    zero: a word for 0.
    """

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    label: str = ""
    shown: str = ""
    unit: str = ""
    offered: bool = True
    flag: str = ""
    short: str = ""
    envvar: str = ""
    zero: str = ""

    def allows(self, value: float) -> bool:
        """Whether a value is in range. NaN compares false with everything, so it is outside every range."""
        bounds = (
            self.low is None or self.low <= value,
            self.high is None or value <= self.high,
            self.above is None or self.above < value,
        )
        return all(bounds)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class. kind: int, float, bool, str or Path. choices: the values of a Literal, else none. several: a
    tuple of such values.
    """

    name: str
    kind: type
    default: Any
    choices: tuple[str, ...]
    about: About
    several: bool = False

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return self.about.flag or "--" + self.name.replace("_", "-")


def setting(default: Value, help: str, **about: Any) -> Value:
    """A dataclass field with a default and an `About`. Typed as its value, as `dataclasses.field` is."""
    return field(default=default, metadata={_KEY: About(help, **about)})


def seed_setting(**about: Any) -> int:
    return setting(0, SEED_HELP, low=0, high=LARGEST_SEED, **about)


@cache
def settings_of(cls: type) -> Mapping[str, Setting]:
    """The settings of a class by name, in order; fields without an `About` are left out."""
    assert is_dataclass(cls), cls
    hints = get_type_hints(cls)
    found = {}
    for each in fields(cls):
        if _KEY in each.metadata:
            hint = hints[each.name]
            several = get_origin(hint) is tuple
            kind, choices = _kind_of(get_args(hint)[0] if several else hint)
            found[each.name] = Setting(each.name, kind, each.default, choices, each.metadata[_KEY], several)
    return found


def _kind_of(hint: Any) -> tuple[type, tuple[str, ...]]:
    """(plain type, choices) of `int`, `int | None`, `Literal["a", "b"]` or a union of literals."""
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        parts = [_kind_of(part) for part in get_args(hint) if part is not type(None)]
        return parts[0][0], tuple(choice for _, choices in parts for choice in choices)
    assert hint in (int, float, bool, str, Path), hint
    return hint, ()


def check_settings(config: object) -> None:
    """Raises ConfigError for the first value of another type, or outside its range or choices, named by its flag. A word for 0
    becomes 0.
    """
    kind: type = type(config)
    for name, each in settings_of(kind).items():
        given = getattr(config, name)
        if each.about.zero and given == each.about.zero:
            object.__setattr__(config, name, given := 0)
        for value in given if each.several else (given,):
            if value is None:
                continue
            if type(value) not in _ACCEPTED.get(each.kind, (each.kind,)):
                raise ConfigError(
                    "a setting is of the wrong type", where=each.flag, expected=_TYPES[each.kind], got=repr(value)
                )
            if not each.about.allows(value):
                expected = range_text(each.about)
                raise ConfigError("out of range", where=each.flag, expected=expected, got=value)
            if each.choices and value not in each.choices:
                expected = ", ".join(filter(None, each.choices))
                raise ConfigError("unknown value", where=each.flag, expected=expected, got=value)


def range_text(about: About) -> str:
    """`1 to 10`, `1 or more`, `at most 10`, `above 0`, `above 0, at most 1`."""
    low, high, above = (
        None if bound is None else f"{bound:g}" if bound < 1e6 else f"{int(bound)}"
        for bound in (about.low, about.high, about.above)
    )
    if low is not None:
        return f"{low} or more" if high is None else f"{low} to {high}"
    return ", ".join(part for part in (above and f"above {above}", high and f"at most {high}") if part)


def from_json(cls: type[Value], values: Mapping[str, Any]) -> Value:
    """An instance from a file's values. Raises ConfigError for a key that no setting has."""
    assert is_dataclass(cls), cls
    check_names(values, [each.name for each in fields(cls)], where=cls.__name__)
    return cls(**values)


def check_names(given: Iterable[str], known: Collection[str], *, where: str) -> None:
    """Raises ConfigError for a name that no setting has."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        close = get_close_matches(unknown[0], known, n=1)
        raise ConfigError(
            "unknown setting", where=where, got=", ".join(unknown), do=f"did you mean {close[0]}?" if close else ""
        )


def offered_of(cls: type) -> dict[str, Setting]:
    """The settings that commands and forms have."""
    return {name: each for name, each in settings_of(cls).items() if each.about.offered}


def form_of(cls: type) -> list[dict[str, Any]]:
    """What a form needs of each setting, as JSON: name, kind, label, help, default, shown, choices, low, high."""
    return [
        {
            "name": each.name,
            "kind": each.kind.__name__,
            "label": each.about.label or each.name.replace("_", " "),
            "help": each.about.help,
            "default": each.default,
            "shown": each.about.shown,
            "choices": list(each.choices),
            "low": each.about.low,
            "high": each.about.high,
            "above": each.about.above,
        }
        for each in offered_of(cls).values()
    ]
