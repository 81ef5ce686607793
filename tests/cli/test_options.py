"""Options made from the fields of a settings class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from sordino.cli.options import option_group, setting_options
from sordino.errors import ConfigError
from sordino.settings import check_settings, setting
from tests.cli.commands import ok
from tests.cli.commands import run as run_command


@dataclass(frozen=True)
class Oven:
    heat: float = setting(180.0, "Degrees.", low=30, high=300, unit="X")
    minutes: int | None = setting(None, "How long.", low=1, shown="by weight")
    mode: Literal["fan", "grill"] = setting("fan", "Where the heat comes from.")
    light_on: bool = setting(False, "Switch the light on.")

    def __post_init__(self) -> None:
        check_settings(self)


def run(arguments: list[str], **how: Any) -> list[Any]:
    got: list[Any] = []

    @click.command()
    @click.argument("dish")
    @setting_options(Oven, given_as="oven", **how)
    def bake(dish: str, oven: Any) -> None:
        got.extend([dish, oven])

    CliRunner().invoke(bake, arguments, catch_exceptions=False, standalone_mode=False)
    return got


def test_a_command_gets_one_value() -> None:
    assert run(["bread"]) == ["bread", Oven()]
    assert run(["bread", "--heat", "200", "--light-on", "--mode", "grill"]) == [
        "bread",
        Oven(200.0, None, "grill", True),
    ]


def test_a_group_of_options_is_one_value_and_keeps_its_place_in_the_help() -> None:
    got: list[Any] = []

    @click.command()
    @click.option("--first")
    @option_group(
        "shelf",
        lambda width, books: (width, books),
        click.option("--width", type=int, default=3),
        click.option("--book", "books", multiple=True),
    )
    @click.option("--last")
    def build(first: str | None, shelf: tuple[int, tuple[str, ...]], last: str | None) -> None:
        got.extend([first, shelf, last])

    CliRunner().invoke(
        build, ["--book", "a", "--last", "x", "--book", "b"], catch_exceptions=False, standalone_mode=False
    )
    assert got == [None, (3, ("a", "b")), "x"]
    assert [each.name for each in build.params] == ["first", "width", "books", "last"]


def test_only_what_was_given() -> None:
    assert run(["bread", "--minutes", "5"], only_given=True) == ["bread", {"minutes": 5}]


def test_the_class_checks_ranges() -> None:
    with pytest.raises(ConfigError, match="--heat"):
        run(["bread", "--heat", "20"])


def test_help_shows_default_choices_and_unit() -> None:
    @click.command()
    @setting_options(Oven, "heat", "minutes", "mode", given_as="oven")
    def bake(oven: Oven) -> None: ...

    said = " ".join(CliRunner().invoke(bake, ["--help"]).output.split())
    for part in ("--heat X Degrees. [default: 180; 30 to 300]", "[default: by weight]", "[fan|grill]"):
        assert part in said
    assert "--light-on" not in said


def test_a_setting_of_several_values_is_repeated_and_one_may_come_from_the_environment() -> None:
    @dataclass(frozen=True)
    class Door:
        names: tuple[str, ...] = setting((), "Who may come in.", flag="--name")
        key: str | None = setting(None, "What opens it.", envvar="SORDINO_TEST_KEY")

    got: list[Any] = []

    @click.command()
    @setting_options(Door, given_as="door")
    def enter(door: Door) -> None:
        got.append(door)

    def run(*arguments: str) -> Door:
        CliRunner().invoke(enter, arguments, env={"SORDINO_TEST_KEY": "brass"}, catch_exceptions=False)
        return got.pop()

    assert run() == Door((), "brass")
    assert run("--name", "a", "--name", "b", "--key", "iron") == Door(("a", "b"), "iron")
    assert "SORDINO_TEST_KEY" in CliRunner().invoke(enter, ["--help"]).stdout


def test_a_word_may_stand_for_0() -> None:
    @dataclass(frozen=True)
    class Grip:
        hold: int = setting(128, "How long.", low=0, high=1000, zero="off")

        def __post_init__(self) -> None:
            check_settings(self)

    got: list[Grip] = []

    @click.command()
    @setting_options(Grip, given_as="grip")
    def grasp(grip: Grip) -> None:
        got.append(grip)

    def run(*arguments: str) -> str:
        return CliRunner().invoke(grasp, arguments).output

    for arguments in ((), ("--hold", "off"), ("--hold", "0"), ("--hold", "7")):
        run(*arguments)
    assert [grip.hold for grip in got] == [128, 0, 0, 7]
    assert "'on' is not a valid integer" in run("--hold", "on")
    assert Grip(hold="off") == Grip(0)  # type: ignore[arg-type]


def test_a_commands_own_default_is_what_the_help_says() -> None:
    @click.command()
    @setting_options(Oven, "minutes", given_as="oven", minutes=45)
    def bake(oven: Oven) -> None: ...

    assert "[default: 45]" in CliRunner().invoke(bake, ["--help"]).output


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", ""),
        ("train", "text.txt", "--heldout", ""),
        ("train", "text.txt", "--out", ""),
        ("sweep", "text.txt", "--out-dir", ""),
        ("convert", "keeper", ""),
        ("list", "--library", ""),
        ("gallery", "build", "", "--out", "site"),
        ("generate", "--batch", ""),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_refused(arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the working directory, whose texts `train "$TEXTS"` learned where that variable was not set."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The lamp was trimmed. " * 200)
    result = run_command(*arguments)
    assert result.exit_code == 2
    assert "the path is empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_empty_parts_of_the_librarys_variable_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "library").mkdir()
    monkeypatch.setenv("SORDINO_LIBRARY", os.pathsep.join(["", "library", ""]))
    assert f"The library {tmp_path / 'library'} is empty" in ok("list")
