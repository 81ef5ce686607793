"""The project around the code: what it declares, what it ships, and that the wheel alone is enough."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from sordino import __version__
from website.reference import PAGES

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "sordino"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Not imported here: transformers wants accelerate to read a .gguf file, fastapi python-multipart to read an upload, uvicorn
# websockets for what is live on the page; pip runs as a program, and of xllamacpp only the library is loaded. The page is part of
# the server, whose extra `ui` brings along.
USED_BY_OTHERS = {
    "core": {"accelerate", "pip", "xllamacpp"},
    "serve": {"python_multipart"},
    "ui": {"websockets", "sordino"},
    "schema": set(),
    "texts": set(),
    "ray": set(),
    # The benchmarks run a classifier.
    "bench": {"scikit_learn"},
    "vllm": set(),
}
# The files that may import what an extra brings; everything else works without it.
FILES_OF_EXTRAS = {
    "serve": ("server/**/*.py", "texts/cards.py"),
    "ui": (),
    "schema": ("engine/grammar.py",),
    "texts": ("texts/web_pages.py",),
    "ray": ("training/sweep/on_ray.py",),
    "bench": ("evaluation/adapters.py",),
    "vllm": ("engine/vllm/*.py",),
}

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a" name="test_x[1]"><skipped type="pytest.skip" message="no GPU"/></testcase>
<testcase classname="tests.a" name="test_y"/>
<testcase classname="tests.b" name="test_known_bug"><skipped type="pytest.xfail" message=""/></testcase>
</testsuite></testsuites>
"""


IMPORTED_AS = {"pillow": "PIL"}


def package_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_") for requirement in requirements}


def imported_packages(paths: Iterable[Path]) -> set[str]:
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"sordino"}


def test_every_import_is_declared_and_every_dependency_is_used() -> None:
    core = package_names(PROJECT["dependencies"])
    rest = set(SOURCE.rglob("*.py"))
    for extra, patterns in FILES_OF_EXTRAS.items():
        files = [path for pattern in patterns for path in SOURCE.glob(pattern)]
        rest -= set(files)
        declared = {IMPORTED_AS.get(name, name) for name in package_names(PROJECT["optional-dependencies"][extra])}
        imported = imported_packages(files)
        assert imported - core - declared == set()
        assert declared - imported == USED_BY_OTHERS[extra]
    imported = imported_packages(rest)
    assert imported - core == set(), "imported outside the files of an extra"
    assert core - imported == USED_BY_OTHERS["core"]


def test_every_dependency_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("-", "_").split("==") for line in lines if line and not line.startswith("#"))
    wanted = package_names(
        PROJECT["dependencies"] + [line for group in PROJECT["optional-dependencies"].values() for line in group]
    )
    # Its own extras, under `dev`; and what has an environment of its own.
    assert wanted - set(pins) == {"sordino", "vllm"}
    assert [name for name, version in pins.items() if "+" in version or "@" in version] == []
    assert pins["torch"] == "2.13.0"


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_pages_are_up_to_date(name: str) -> None:
    page = (REPOSITORY / "docs" / name).read_text(encoding="utf-8")
    assert page == PAGES[name](), f"docs/{name} is out of date: run `make docs`"


def test_ci_counts_skips_and_refuses_those_not_allowed(tmp_path: Path) -> None:
    (tmp_path / "results.xml").write_text(JUNIT)

    def run(allowed: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "allowed.txt").write_text(allowed)
        arguments = [REPOSITORY / ".ci" / "skips.py", tmp_path / "allowed.txt", tmp_path / "results.xml"]
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True)

    refused = run("# nothing\n")
    assert refused.returncode == 1
    assert "skipped tests: 1" in refused.stdout
    assert "NOT ALLOWED tests.a::test_x[1]: no GPU" in refused.stdout
    assert run("tests.a::test_x* needs a GPU\n").returncode == 0
    assert run("reason:no?GPU a line for all of a kind\n").returncode == 0
    assert run("reason:*disk* another kind\n").returncode == 1
    assert "no reason given" in run("tests.a::test_x*\n").stderr


def test_ci_runs_failed_tests_of_other_programs_once_more_and_names_them(tmp_path: Path) -> None:
    test = tmp_path / "tests" / "programs" / "test_x.py"
    test.parent.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    test.write_text("import os\n\ndef test_a():\n    assert os.path.exists('up')\n")

    def run(module: str) -> subprocess.CompletedProcess[str]:
        case = f'<testcase classname="{module}" name="test_a"><failure/></testcase>'
        (tmp_path / "slow.xml").write_text(f"<testsuites><testsuite>{case}</testsuite></testsuites>")
        command = [sys.executable, REPOSITORY / ".ci" / "again.py", "slow.xml"]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    twice = run("tests.programs.test_x")
    assert twice.returncode == 1
    assert "FLAKY" not in twice.stdout
    (tmp_path / "up").touch()
    once = run("tests.programs.test_x")
    assert once.returncode == 0, once.stdout
    assert "FLAKY, passed only alone, find out why: tests/programs/test_x.py::test_a" in once.stdout
    ours = run("tests.training.test_x")
    assert ours.returncode == 1
    assert "1 failed: tests/training/test_x.py::test_a" in ours.stderr
    (tmp_path / "slow.xml").unlink()
    ended = subprocess.run(
        [sys.executable, REPOSITORY / ".ci" / "again.py", tmp_path / "slow.xml"], capture_output=True
    )
    assert ended.returncode == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, REPOSITORY)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    files = {path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {path.relative_to(SOURCE.parent).as_posix() for path in files}
    assert any(name.startswith("sordino/data/prompts/") for name in held)


@pytest.mark.slow
def test_builds_are_the_same_bytes_and_the_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    def built(source: Path, name: str) -> dict[str, bytes]:
        """The bytes of sdist and wheel, by their suffix."""
        command = [sys.executable, "-m", "hatchling", "build", "-d", tmp_path / name]
        _run(*command, cwd=source, SOURCE_DATE_EPOCH="1700000000")
        return {path.suffix: path.read_bytes() for path in (tmp_path / name).iterdir()}

    first = built(REPOSITORY, "first")
    assert set(first) == {".whl", ".gz"}
    (sdist,) = (tmp_path / "first").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    # The dates of the files on the disk do not matter.
    assert built(unpacked, "second") == first


@pytest.mark.slow
def test_the_sdist_holds_the_project_without_what_runs_leave_behind(tmp_path: Path) -> None:
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=REPOSITORY)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert [name for name in held if re.search(r"__pycache__|\.py[co]$|_cache/|^(build|dist|runs|\.venv)/", name)] == []
    documents = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("*.md")}
    assert {
        *documents,
        "LICENSE",
        "pyproject.toml",
        "Makefile",
        "mkdocs.yml",
        ".ci/run",
        "tests/test_project.py",
    } <= held
    assert {path.relative_to(REPOSITORY).as_posix() for path in SOURCE.rglob("*.py")} <= held


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    """What a user without a clone does: `uvx sordino demo`, from this wheel and those of its dependencies. Needs the network.

    Nothing of this checkout is in reach: another folder, another cache, so the model is fetched and converted too.
    """
    house = tmp_path / "house"
    _run(sys.executable, "-m", "pip", "wheel", "-q", "-c", REPOSITORY / "constraints.txt", "-w", house, wheel)
    uv = shutil.which("uv", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    uvx = [uv, "tool", "run", "--quiet", "--offline", "--no-index", "--find-links", house, "--from", wheel, "sordino"]
    outside = {
        "cwd": tmp_path,
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_PYTHON": sys.executable,
        "SORDINO_CACHE": str(tmp_path / "cache"),
        "SORDINO_LIBRARY": str(tmp_path / "library"),
    }

    assert __version__ in _run(*uvx, "--version", **outside)
    report = json.loads(_run(*uvx, "doctor", "--json", **outside))
    assert {finding["what"] for finding in report if finding["state"] == "bad"} == set()
    said = _run(*uvx, "demo", "--minutes", "0.1", **outside)
    (made,) = tmp_path.glob("sordino-demo/*.zip")
    assert made.name in said
    shown = json.loads(_run(*uvx, "show", made, "--json", **outside))
    assert shown


def _run(*command: object, cwd: Path | None = None, **environment: str) -> str:
    """Standard output of a command with the network allowed. Its whole output is shown if it fails."""
    closed = ("PIP_NO_INDEX", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in closed}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=1200,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_no_error_names_what_is_wrong_twice() -> None:
    """As in "--strength: strength is out of range": an error begins with its place."""
    twice = []
    for path in sorted(SOURCE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            where = next((one.value for one in call.keywords if one.arg == "where"), None)
            said = (call.args[0].body, call.args[0].orelse) if isinstance(call.args[0], ast.IfExp) else (call.args[0],)
            if not isinstance(where, ast.Constant) or not isinstance(where.value, str):
                continue
            name = where.value.lower().removeprefix("--").replace("-", " ").replace("_", " ")
            named = re.compile(rf"(an? |the |unknown |not an? |no |too few )?{re.escape(name)}s?\b", re.IGNORECASE)
            twice += [
                f"{path.relative_to(SOURCE)}: {where.value}: {one.value}"
                for one in said
                if isinstance(one, ast.Constant) and isinstance(one.value, str) and named.match(one.value)
            ]
    assert twice == []
