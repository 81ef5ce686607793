"""The `sordino` command.

Commands are loaded when they are called, and what they need (torch above all) when they run, so that `sordino --help`
and shell completion answer at once. How failures leave: a SordinoError is one `error:` line and its class's exit code;
Ctrl-C is 130; anything else is a bug in Sordino, reported in one line, 70. SORDINO_DEBUG=1 lets every traceback through.
"""

from __future__ import annotations

import io
import os
import re
import sys
from importlib import import_module
from typing import Any

import click

from sordino import __version__
from sordino.engine.waiting import watch_the_machine
from sordino.errors import ConfigError, ProcessLost, SordinoError
from sordino.storage import REFUSALS
from sordino.training.launch import is_launched, is_silent, started_in_several

# name -> (module in this folder, one line for `sordino --help`). Its function there has its name, or `list_`, `help_`.
Table = dict[str, tuple[str, str]]
GROUPS: dict[str, Table] = {
    "Make": {
        "demo": ("demo", "Train a soft prompt and see a model's voice change, in a few minutes."),
        "train": ("train", "Make a soft prompt from texts."),
        "distil": ("distil", "Turn a long instruction or a character card into a soft prompt."),
        "sweep": ("sweep", "Try many settings together and keep the best."),
        "mixture": ("mix", "Weigh several soft prompts by examples, so that they write as one."),
        "ensemble": ("ensemble", "Soft prompts that write as one."),
        "blend": ("blend", "Blend soft prompts into one, and measure the losses between two."),
        "prune": ("prune", "Make a soft prompt shorter: drop the virtual tokens that matter least."),
    },
    "Use": {
        "generate": ("write", "Continue TEXT, with or without a soft prompt."),
        "compare": ("write", "Continue TEXT without and with each soft prompt, from the same seed, side by side."),
        "list": ("listing", "List the soft prompts in the library."),
        "show": ("prompts", "Show what a soft prompt says about itself."),
        "doctor": ("doctor", "Check models, folders, extras and hardware."),
        "help": ("help", "Show the help of a command."),
    },
    "Share": {
        "search": ("hub", "Search the Hugging Face Hub for soft prompts."),
        "install": ("prompts", "Copy a soft prompt into the library, from a file, a gallery or the Hugging Face Hub."),
        "push": ("hub", "Publish a soft prompt on the Hugging Face Hub."),
        "remove": ("prompts", "Take a soft prompt out of the library."),
        "edit": ("prompts", "Change a soft prompt's name, description or other metadata."),
        "convert": ("prompts", "Rewrite a soft prompt in another format."),
        "gallery": ("gallery", "Soft prompts of web pages: make such a page, add one, list what it offers."),
        "bake": ("bake", "Write a copy of a base model with soft prompts as tokens, for any program."),
    },
    "Look inside": {
        "evaluate": ("evaluate", "Measure soft prompts on held-out texts."),
        "answers": ("answer", "Measure soft prompts on a task: how many answers are right."),
        "inspect": ("inspect", "Look inside soft prompts: words, norms, importance, attention."),
        "sources": ("prompts", "Rank soft prompts as starting points for another."),
    },
    "Serve": {
        "ui": ("serve", "Open the page: load a soft prompt, watch the lamp turn green, write, train."),
        "serve": ("serve", "Serve a model and every soft prompt that fits it over HTTP, and the page to use them."),
    },
}
# Those that several processes can share.
SEVERAL = ("train", "sweep")
COMMANDS: Table = {name: entry for group in GROUPS.values() for name, entry in group.items()}

_INTERRUPTED = 130
_SOFTWARE_ERROR = 70


class Commands(click.Group):
    """The tables above as a click group, and the place where exceptions become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        watch_the_machine()
        found = vars(import_module(f"{__name__}.{COMMANDS[cmd_name][0]}"))
        command = found.get(cmd_name) or found[f"{cmd_name}_"]
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in group.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # click suggests among the commands registered on the group, and lazy ones are not.
        if started_in_several() and args[0] not in SEVERAL:
            raise ConfigError("this command runs in one process", where=args[0], do="start it without torchrun")
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise click.exceptions.Exit(_show_usage(error)) from None
        except BrokenPipeError:
            raise click.exceptions.Exit(_reader_left()) from None

    def invoke(self, ctx: click.Context) -> Any:
        if os.environ.get("SORDINO_DEBUG", "") not in ("", "0"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if not is_silent():
                click.echo("interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except click.ClickException as error:
            ctx.exit(_show_usage(error))
        # click's own exceptions, which are RuntimeErrors.
        except (click.exceptions.Exit, click.Abort):
            raise
        # The last resort: whatever it is, the user gets one line and a script an exit code.
        except Exception as error:
            ctx.exit(_report(error))


def _report(error: Exception) -> int:
    """Say what went wrong in one line on stderr, and return the exit code."""
    if isinstance(error, BrokenPipeError):
        return _reader_left()
    message, exit_code = _line_and_code(error)
    if _is_to_say(error):
        from sordino.cli.console import err, one_line, show_error

        err.quiet = False
        show_error(one_line(message))
    return exit_code


def _reader_left() -> int:
    """The exit code for an output that was closed (`sordino list | head`); what is left in its buffer goes nowhere."""
    from sordino.cli.console import BROKEN_PIPE, out

    out.silence()
    return BROKEN_PIPE


def _is_to_say(error: Exception) -> bool:
    """Whether this process shows what ended it: of several that were started together, the first one does."""
    if not started_in_several():
        return True
    if isinstance(error, ProcessLost) and is_launched():
        return False
    from sordino.training.distributed import is_first_to_fail

    return is_first_to_fail()


def _show_usage(error: click.ClickException) -> int:
    """Show an error of click's, and return the exit code."""
    if not _is_to_say(error):
        return error.exit_code
    from sordino.cli.console import err, printable, show_error

    err.quiet = False
    text = io.StringIO()
    error.show(text)
    # As ours begin.
    show_error(printable(re.sub("^Error:", "error:", text.getvalue(), count=1, flags=re.MULTILINE).rstrip("\n")))
    return error.exit_code


def _line_and_code(error: Exception) -> tuple[str, int]:
    if isinstance(error, SordinoError):
        return f"error: {error.message}", error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror or type(error).__name__}", 1
    if isinstance(error, FileNotFoundError):
        # A relative path is resolved by the working directory, and the error for that names no file.
        return "error: the working directory has been removed; change to another", 1
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return f"error: the output cannot be written ({error.strerror})", 1
    return (
        f"internal error: {type(error).__name__}: {error}; this is a bug in Sordino: please report it, "
        "with what the same command prints under SORDINO_DEBUG=1",
        _SOFTWARE_ERROR,
    )


def _survive_narrow_encodings() -> None:
    """Print "?" for a character that the output's encoding lacks (cp1252 on Windows) rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sordino")
@click.pass_context
def main(context: click.Context) -> None:
    """Train, share and use soft prompts: small files that change a language model's voice.

    The model itself stays as it is.
    """
    _survive_narrow_encodings()
    if is_silent():
        from sordino.cli.console import err, out

        out.quiet = err.quiet = True
    if context.invoked_subcommand is not None:
        return
    from sordino.library.library import default_folders

    folders = os.pathsep.join(map(str, default_folders()))
    click.echo('Use    sordino list, then sordino generate "Some text" --soft-prompt NAME')
    click.echo("Make   sordino train FOLDER_OF_TEXTS --out voice.zip; sordino demo shows the whole way")
    click.echo(
        "Serve  sordino serve, for OpenAI's clients; KoboldAI loads the file as it is, PEFT after sordino convert"
    )
    click.echo(f"Your library of soft prompts: {folders}   (sordino --help lists all commands)")
