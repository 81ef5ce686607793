"""The documents: their links lead somewhere, and the commands in them exist with the options they are shown with."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from benchmarks.table import PAGE, headlines, page
from sordino.cli import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]

_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
# In `backticks`, or indented as a block; up to the end of either.
_COMMAND = re.compile(r"(?:^ {4}|`)sordino ([a-z]+)([^`\n]*)", re.MULTILINE)
_OPTION = re.compile(r"(?<=\s)--?[a-z][a-z-]*")


def options_of(command: str, rest: str = "") -> set[str]:
    """Of the command, or of the one of its own commands that `rest` begins with."""
    found = main.get_command(click.Context(main), command)
    assert found is not None
    if isinstance(found, click.Group) and rest.split():
        assert rest.split()[0] in found.commands, f"sordino {command}{rest}"
        found = found.commands[rest.split()[0]]
    return {"--help", *(name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts))}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    for command, rest in _COMMAND.findall(page.read_text(encoding="utf-8")):
        assert command in COMMANDS, f"sordino {command}"
        # Behind two spaces or more in a block comes an explanation.
        shown = set(_OPTION.findall(re.split(r" {3,}", rest)[0]))
        assert shown <= options_of(command, rest), f"sordino {command}{rest}"


def test_the_patterns_find_what_they_are_for() -> None:
    text = "`sordino list --json` and\n\n    sordino train A --out b.zip -m X    into the --library\n[a](docs/x.md#y) [b](https://z)"
    assert _COMMAND.findall(text)[0] == ("list", " --json")
    assert _OPTION.findall(_COMMAND.findall(text)[1][1]) == ["--out", "-m", "--library"]
    assert _LINK.findall(text) == ["docs/x.md", "https://z"]


def test_the_tables_are_those_of_the_committed_results() -> None:
    """After a benchmark: python -m benchmarks.table, then make readme."""
    assert PAGE.read_text(encoding="utf-8") == "\n".join(page()).rstrip() + "\n"
    assert "\n".join(headlines()) in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_shows_the_first_sample_of_its_page() -> None:
    readme, samples = (REPOSITORY / name for name in ("README.md", "docs/samples.md"))
    assert len(readme.read_text(encoding="utf-8").splitlines()) < 120
    first = re.search(r"make readme: sample -->\n(.*?)<!-- end", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert first
    assert first[1].strip() in samples.read_text(encoding="utf-8")
