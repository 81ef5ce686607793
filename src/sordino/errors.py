"""The errors a user of Sordino can meet.

Every error says, in one line: what went wrong, where, what was expected and what was found, and what to do.

    SordinoError
     ├─ BadInput                  the user's input is wrong; the CLI exits with 2, nothing was written
     │   ├─ SoftPromptFileError   a file that is not a soft prompt, or a broken or hostile one
     │   ├─ NameTaken             a name that another soft prompt in the library has
     │   ├─ NotInLibrary          a name that no file in the library has (near misses are in the message)
     │   ├─ DataError             training or held-out texts that cannot be used
     │   ├─ ConfigError           settings that contradict each other or do not exist
     │   ├─ GalleryError          a gallery, or a file of it, that cannot be had or is not what was listed
     │   ├─ HubError              a repository of the Hugging Face Hub that cannot be reached, read or written
     │   ├─ ModelError            a base model that is missing, broken or of a kind that cannot be used
     │   └─ DoesNotFit            a soft prompt that was not made for this base model
     ├─ MissingExtra              an optional dependency is not installed; the message names the pip command
     ├─ StorageError              the disk refused a write (full, read-only, file held open); the old file is intact
     ├─ OutOfMemory               memory ran out; the message names the flag to lower
     ├─ EngineBusy                more requests wait than the queue holds
     └─ TrainingError             training cannot go on
         ├─ CheckpointError       a run cannot be resumed: its checkpoint is missing, damaged, or another run's (also a BadInput)
         ├─ Diverged              the loss is not a number; the last good matrix was kept
         └─ ProcessLost           another process of the run ended; the run can go on from its checkpoint
"""

from __future__ import annotations

import re

# `--row-tokens`, and not the two dashes of a range or a path.
_FLAG = re.compile(r"(?<![\w./-])--([a-z][a-z-]*[a-z])")
_SWITCHES = ("overwrite", "force", "find_lr", "no_samples")


class SordinoError(Exception):
    """Base of every error that Sordino raises on purpose.

    what: the failure in a few words. where: the file, field or flag. expected, got: the rule and what broke it.
    do: what the user can do about it. Empty parts are left out of the message.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = "", expected: object = "", got: object = "", do: str = "") -> None:
        self.what, self.where, self.expected, self.got, self.do = (
            what,
            str(where),
            readable(expected),
            readable(got),
            do,
        )
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole error on one line."""
        found = ", ".join(
            part
            for part in (f"expected {self.expected}" if self.expected else "", f"got {self.got}" if self.got else "")
            if part
        )
        head = f"{self.where}: {self.what}" if self.where else self.what
        line = "; ".join(part for part in (head, found, self.do) if part)
        return " ".join(line.split())

    def name_arguments(self) -> None:
        """Name the arguments of Python functions in place of the command's flags, but not within advice to run a command."""
        for part in ("what", "where", "expected", "do"):
            clauses = getattr(self, part).split("; ")
            named = (one if "sordino " in one else _FLAG.sub(_argument, one) for one in clauses)
            setattr(self, part, "; ".join(named))
        self.args = (self.message,)


def readable(value: object) -> str:
    """A value for people: bytes as the text that they are, or in hexadecimal."""
    if not isinstance(value, bytes):
        return str(value)
    text = value.decode("latin-1")
    return f'"{text}"' if text.isascii() and text.isprintable() else value.hex(" ")


def _argument(flag: re.Match[str]) -> str:
    name = flag[1].replace("-", "_")
    return f"{name}=True" if name in _SWITCHES else name


class BadInput(SordinoError):
    """The user's input is wrong."""

    exit_code = 2


class SoftPromptFileError(BadInput):
    """A file that is not a soft prompt, or a broken or hostile one."""


class NameTaken(BadInput):
    """A name that another soft prompt in the library has."""


class NotInLibrary(BadInput):
    """A name that no file in the library has."""


class DataError(BadInput):
    """Texts that cannot be used."""


class ConfigError(BadInput):
    """Settings that contradict each other or do not exist."""


class GalleryError(BadInput):
    """A gallery, or a file of it, that cannot be had or is not what was listed."""


class HubError(BadInput):
    """A repository of the Hugging Face Hub that cannot be reached, read or written."""


class ModelError(BadInput):
    """A base model that is missing, broken or of a kind that cannot be used."""


class DoesNotFit(BadInput):
    """A soft prompt that was not made for this base model."""


class MissingExtra(SordinoError):
    """An optional dependency is not installed."""


class StorageError(SordinoError):
    """The disk refused a write; the old file is intact."""


class OutOfMemory(SordinoError):
    """Memory ran out."""


class EngineBusy(SordinoError):
    """More requests wait than the queue holds."""


class TrainingError(SordinoError):
    """Training cannot go on."""


class CheckpointError(TrainingError, BadInput):
    """A run cannot be resumed: its checkpoint is missing, damaged, or another run's."""


class Diverged(TrainingError):
    """The loss is not a number."""


class ProcessLost(TrainingError):
    """Another of the processes that train together ended."""

    # "Temporary failure": what is started again goes on.
    exit_code = 75
