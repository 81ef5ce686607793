"""The root command: what it says alone, how it finds commands, and how failures leave it."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from sordino import cli
from sordino.cli import console
from sordino.cli.console import one_line, print_json, printable
from sordino.cli.train import train
from sordino.errors import BadInput, StorageError
from tests.waiting import WAIT

SOURCE = Path(__file__).resolve().parents[2] / "src"
FILE = Path(__file__).resolve().parents[1] / "golden" / "v1.zip"

NO_TORCH = """
import sys
import sordino
assert "numpy" not in sys.modules
from sordino.cli import COMMANDS, main
for arguments in [["--help"], [], *([name, "--help"] for name in COMMANDS)]:
    assert not main(arguments, prog_name="sordino", standalone_mode=False), arguments
    loaded = {"torch", "transformers", "matplotlib"} & set(sys.modules)
    assert not loaded, f"sordino {' '.join(arguments)} loads {loaded}"
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=WAIT,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1", **environment},
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Make `sordino fail` raise the given exception; returns what CliRunner saw."""

    def run(error: BaseException, **environment: str):
        @click.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(sys.modules[__name__], "fail", command, raising=False)
        monkeypatch.setitem(cli.COMMANDS, "fail", (__name__, "Fail."))
        monkeypatch.setattr(cli, "import_module", lambda name: sys.modules[name.removeprefix("sordino.cli.")])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(cli.main, ["fail"], prog_name="sordino")

    return run


def test_alone_it_says_use_make_serve_and_where_the_library_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.main, [], prog_name="sordino")
    assert result.exit_code == 0
    use, make, serve, library = result.stdout.splitlines()
    assert (use.split()[0], make.split()[0], serve.split()[0]) == ("Use", "Make", "Serve")
    assert str(tmp_path / "library") in library


def test_every_command_it_names_exists() -> None:
    stdout = CliRunner().invoke(cli.main, [], prog_name="sordino").stdout
    named = [after.split()[0].strip(",;") for after in stdout.split("sordino ")[1:]]
    assert len(named) >= 5
    assert [name for name in named if name not in cli.COMMANDS and name != "--help"] == []


def test_help_lists_every_command_with_its_own_first_line() -> None:
    stdout = CliRunner().invoke(cli.main, ["--help"], prog_name="sordino").stdout
    context = click.Context(cli.main)
    for name, (_, summary) in cli.COMMANDS.items():
        command = cli.main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(limit=200).startswith(summary.rstrip(".")), f"{name}: two summaries"
        assert name in stdout


@pytest.mark.parametrize("names", [(), ("list",), ("mixture",), ("mixture", "fit")])
def test_help_shows_what_the_flag_does(names: tuple[str, ...]) -> None:
    by_name, by_flag = (
        CliRunner().invoke(cli.main, arguments, prog_name="sordino")
        for arguments in (["help", *names], [*names, "--help"])
    )
    assert (by_name.exit_code, by_name.stdout) == (0, by_flag.stdout)


@pytest.mark.parametrize(("names", "said"), [(("lsit",), "Did you mean 'list'"), (("list", "fit"), "no commands")])
def test_help_of_an_unknown_command_is_an_error(names: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(cli.main, ["help", *names], prog_name="sordino")
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.mark.parametrize(
    ("typed", "complete"), [("sordino he", "plain,help"), ("sordino generate --soft-p", "plain,--soft-prompt")]
)
def test_the_shell_completes_commands_and_options(typed: str, complete: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = python("-m", "sordino", **words, _SORDINO_COMPLETE="bash_complete")
    assert complete in done.stdout.splitlines()


@pytest.mark.parametrize(("columns", "width"), [("", 200), ("80", 80), ("no number", 200), ("0", 200)])
def test_through_a_pipe_lines_are_long_or_as_columns_says(columns: str, width: int) -> None:
    done = python("-c", "from sordino.cli.console import err, out; print(out.width, err.width)", COLUMNS=columns)
    assert done.stdout == f"{width} {width}\n"


def test_help_groups_the_commands() -> None:
    stdout = CliRunner().invoke(cli.main, ["--help"], prog_name="sordino").stdout
    headings = [line.rstrip(":") for line in stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options", "Make", "Use", "Share", "Look inside", "Serve"]


def test_the_help_of_train_has_sections_and_each_option_once() -> None:
    stdout = CliRunner().invoke(cli.main, ["train", "--help"], prog_name="sordino").stdout
    headings = [line.rstrip(":") for line in stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:3] == ["Files", "Soft prompt", "Length of the run"]
    assert headings[-1] == "Other"
    other = stdout.partition("\nOther:\n")[2].split()
    assert [word for word in other if word.startswith("-")] == ["--json", "-h,", "--help"]
    flags = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", stdout, re.MULTILINE)
    known = [one.opts[0] for one in train.params if isinstance(one, click.Option) and not one.hidden]
    assert sorted(flags) == sorted([one if one.startswith("--") else "--model" for one in known] + ["--help"])


def test_help_and_import_load_no_torch() -> None:
    done = python("-c", NO_TORCH)
    assert done.returncode == 0, done.stderr


def test_python_m_sordino() -> None:
    assert python("-m", "sordino", "--version").stdout.startswith("sordino, version ")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["evalute"], "evaluate"),
        (["instal", "x.zip"], "install"),
        (["--versoin"], "--version"),
        (["list", "--jsn"], "--json"),
    ],
)
def test_typos_are_answered_with_the_nearest(typed: list[str], expected: str) -> None:
    result = CliRunner().invoke(cli.main, typed, prog_name="sordino")
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr
    assert f"'{expected}'" in result.stderr.split("Did you mean")[1]


def test_an_unknown_command_gets_no_wild_guess() -> None:
    result = CliRunner().invoke(cli.main, ["xyzzy"], prog_name="sordino")
    assert result.exit_code == 2
    assert "Did you mean" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(BadInput("no text", where="a.txt"), 2), (StorageError("disk full", where="a.txt"), 1)]
)
def test_our_errors_are_one_line_and_their_exit_code(failing, error: BadInput, code: int) -> None:
    result = failing(error)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"error: {error.message}\n")


def test_an_error_cannot_send_escape_sequences_to_the_terminal(failing) -> None:
    assert "\x1b" not in failing(BadInput("not a soft prompt", where="evil\x1b]0;title\x07.zip")).stderr


@pytest.mark.parametrize(
    ("text", "red"),
    [
        ("error: a.txt: no text, error: twice", "error:"),
        ("internal error: ValueError: x", "internal error:"),
        ("Usage: sordino ...\n\nerror: No such option", "error:"),
    ],
)
def test_the_first_word_of_an_error_is_red_on_a_terminal(monkeypatch: pytest.MonkeyPatch, text: str, red: str) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        console, "err", Console(file=shown, force_terminal=True, color_system="standard", soft_wrap=True)
    )
    console.show_error(text)
    assert shown.getvalue() == text.replace(red, f"\x1b[1;31m{red}\x1b[0m", 1) + "\n"


def test_a_refusal_of_the_system_names_the_file(failing) -> None:
    result = failing(PermissionError(13, "Permission denied", "texts/a.txt"))
    assert (result.exit_code, result.stderr) == (1, "error: texts/a.txt: Permission denied\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder that a process works in")
def test_a_working_directory_that_is_gone_is_no_bug(failing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        os.getcwd()
    monkeypatch.chdir(tmp_path)
    result = failing(raised.value)
    assert result.exit_code == 1
    assert result.stderr == "error: the working directory has been removed; change to another\n"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_behind_the_output_is_no_bug(failing, code: int) -> None:
    result = failing(OSError(code, os.strerror(code)))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert os.strerror(code) in result.stderr


def test_a_bug_is_one_line_that_asks_for_a_report(failing) -> None:
    result = failing(ValueError("two\nlines"))
    assert result.exit_code == 70
    assert result.stderr.startswith("internal error: ValueError: two lines; ")
    assert "SORDINO_DEBUG=1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_130(failing) -> None:
    result = failing(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("error", [ValueError("x"), BadInput("x")])
def test_debug_lets_the_traceback_through(failing, error: Exception) -> None:
    assert failing(error, SORDINO_DEBUG="1").exception is error


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no broken pipes: a reader that leaves gives another error"
)
@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "--help"], ["help", "list"], ["show", str(FILE)], ["show", str(FILE), "--json"]]
)
def test_a_reader_that_leaves_ends_the_command_as_a_shell_says_it(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sordino", *arguments],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WAIT,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
    finally:
        os.close(write_end)
    assert done.returncode == 141, done.stderr
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_printable_keeps_text_and_drops_what_steers_a_terminal() -> None:
    assert printable("déjà 🎻\n\tvu") == "déjà 🎻\n\tvu"
    assert printable("\x1b[2Jx\x9by\u202ez\x00\x7f") == "\ufffd[2Jx\ufffdy\ufffdz\ufffd\ufffd"
    assert one_line("a\r\nb \t c") == "a b c"


def test_json_on_a_terminal_steers_it_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"name": "\x1b[2Jx\x9b31my\u202ez\x7f\ud800 déjà 🎻"}
    print_json(value)
    shown = capsys.readouterr().out
    assert printable(shown) == shown
    assert "déjà 🎻" in shown
    assert json.loads(shown) == value
