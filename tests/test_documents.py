"""The documents: links, files and modules that they name exist, and so do commands, with the options they are shown with."""

from __future__ import annotations

import os
import pkgutil
import re
from functools import cache
from pathlib import Path

import click
import pytest

from benchmarks import why
from benchmarks.table import PAGE, headlines, page
from sordino.cli import COMMANDS, main
from sordino.server.addresses import Access

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]

_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_HEADING_LINK = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
# In `backticks`, or indented as a block; up to the end of either. A line may go on after a backslash.
_COMMAND = re.compile(r"(?:^ {4}|`)sordino ([a-z]+)((?:\\\n|[^`\n])*)", re.MULTILINE)
_OPTION = re.compile(r"(?<=\s)--?[a-z][a-z-]*")
_QUOTED = re.compile(r"`([^`\n]+)`")
# Of other programs people name .zip, .json and the like; files of these kinds are ours.
_FILE = re.compile(r"(?<![\w./*-])[\w.-]+(?:/[\w.-]+)*\.(?:py|js|css|md|cmake|j2)(?![\w/])")
_FOLDER = re.compile(r"(?<![\w./-])(?:\.ci|src|sordino|tests|benchmarks|examples|native)/[\w./-]*")
_MODULE = re.compile(r"(?<![\w./-])(?:sordino|benchmarks)(?:\.[A-Za-z_]\w*)+")
_RUN_AS_MODULE = re.compile(r"python -m ((?:sordino|benchmarks)(?:\.\w+)+)")
# Where a page says that our server is: its address, or the port that a notebook shows.
_PORT = re.compile(r"(?:127\.0\.0\.1:|localhost:|_port_as_iframe\()(\d+)")
# The log tells of code as it was.
NAMING = [page for page in PAGES if page.name != "LOG.md"]
# Names with a dot that are no module: a file beside PEFT's, and "any of them".
NO_MODULES = {"sordino.json", "sordino.safetensors", "benchmarks.NAME"}


def options_of(command: str, rest: str = "") -> set[str]:
    """Of the command, or of the one of its own commands that `rest` begins with."""
    found = main.get_command(click.Context(main), command)
    assert found is not None
    if isinstance(found, click.Group) and rest.split():
        assert rest.split()[0] in found.commands, f"sordino {command}{rest}"
        found = found.commands[rest.split()[0]]
    return {"--help", *(name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts))}


@cache
def our_files() -> frozenset[str]:
    """Paths from the repository, files and folders, that git could hold."""
    found = set()
    for folder, folders, files in os.walk(REPOSITORY):
        # Environments and caches; what is ours in a hidden folder is CI.
        folders[:] = [
            name for name in folders if name in (".ci", ".github") or not name.startswith((".", "__pycache__"))
        ]
        found.update(Path(folder, name).relative_to(REPOSITORY).as_posix() for name in (*folders, *files))
    return frozenset(found)


def is_ours(name: str) -> bool:
    """`loop.py`, `training/loop.py` and `src/sordino/training/loop.py` are all names of one file."""
    return any(path == name or path.endswith(f"/{name}") for path in our_files())


def missing_names(text: str) -> list[str]:
    """The files, folders and modules that a text names and that are not there."""
    quoted = _QUOTED.findall(text)
    files = [name for part in quoted for pattern in (_FILE, _FOLDER) for name in pattern.findall(part)]
    modules = [name for part in quoted for name in _MODULE.findall(part)] + _RUN_AS_MODULE.findall(text)
    return [name for name in files if not is_ours(name.rstrip("/"))] + [name for name in modules if not resolves(name)]


def resolves(name: str) -> bool:
    """A module, which is not imported, or something in one, which is."""
    if name in NO_MODULES or is_ours(f"{name.replace('.', '/')}.py"):
        return True
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", NAMING, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_and_modules_exist(page: Path) -> None:
    assert missing_names(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`training/loop.py`, `loop.py`, `sordino/texts`, `tests/parity/` and `src/sordino/training/loop.py`", []),
        ("`sordino.training.loop.train_group`, `sordino.errors` and `sordino.json`", []),
        ("`python -m benchmarks.table`; `bash .ci/run`; `python website/reference.py --check`", []),
        (
            "no/such.py without quotes, `voice.zip`, `voice.run/report.html`, `sordino[texts]`, `~/.cache/sordino-build`",
            [],
        ),
        ("`train/loop.py` and `oop.py`", ["train/loop.py", "oop.py"]),
        ("`tests/train/`", ["tests/train/"]),
        ("`sordino.training.loop.train_all`", ["sordino.training.loop.train_all"]),
        ("    python -m benchmarks.nothing", ["benchmarks.nothing"]),
    ],
)
def test_missing_names_are_found(text: str, missing: list[str]) -> None:
    assert missing_names(text) == missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_to_headings_lead_to_one(page: Path) -> None:
    links = [link for link in _HEADING_LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link[0]]
    assert [link for link in links if link[1] not in anchors(page.parent / link[0] if link[0] else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_exist(page: Path) -> None:
    for command, rest in _COMMAND.findall(page.read_text(encoding="utf-8")):
        assert command in COMMANDS, f"sordino {command}"
        # After two spaces or more in a block comes an explanation.
        shown = set(_OPTION.findall(re.split(r" {3,}", re.sub(r"\\\n *", "", rest))[0]))
        assert shown <= options_of(command, rest), f"sordino {command}{rest}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_our_server_is_shown_where_it_listens(page: Path) -> None:
    assert set(_PORT.findall(page.read_text(encoding="utf-8"))) <= {str(Access().port)}


def test_the_patterns_find_what_they_are_for() -> None:
    text = "`sordino list --json` and\n\n    sordino train A --out b.zip -m X    into the --library\n[a](docs/x.md#y) [b](https://z)"
    assert _COMMAND.findall(text)[0] == ("list", " --json")
    assert _COMMAND.findall("    sordino train A \\\n        --out b.zip\n    c") == [
        ("train", " A \\\n        --out b.zip")
    ]
    assert _OPTION.findall(_COMMAND.findall(text)[1][1]) == ["--out", "-m", "--library"]
    assert _PORT.findall("http://127.0.0.1:5100/v1 output.serve_kernel_port_as_iframe(5000, height=900)") == [
        "5100",
        "5000",
    ]
    assert _LINK.findall(text) == ["docs/x.md", "https://z"]


def test_the_tables_are_those_of_the_committed_results() -> None:
    """After a benchmark: python -m benchmarks.table, python -m benchmarks.why, then make readme."""
    assert PAGE.read_text(encoding="utf-8") == "\n".join(page()).rstrip() + "\n"
    assert "\n".join(headlines()) in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "\n".join(why.table()) in why.PAGE.read_text(encoding="utf-8")


def test_the_readme_is_short_and_shows_the_first_sample_of_its_page() -> None:
    readme, samples = (REPOSITORY / name for name in ("README.md", "docs/samples.md"))
    assert len(readme.read_text(encoding="utf-8").splitlines()) < 120
    first = re.search(r"make readme: sample -->\n(.*?)<!-- end", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert first
    assert first[1].strip() in samples.read_text(encoding="utf-8")
