"""Which soft prompt a request gets.

Strongest first: what the request says (a soft prompt, or none, said so); what the route falls back to: the server's default
on KoboldAI's routes, none on OpenAI's. The default is remembered for each model, by the model's fingerprint.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sordino import formats
from sordino.errors import BadInput, DoesNotFit, EngineBusy, NotInLibrary, SordinoError, StorageError
from sordino.library.library import Entry, Library
from sordino.library.names import near_misses
from sordino.models.description import DescribedModel
from sordino.prompts.fit import Fit
from sordino.prompts.mixture import StoredPrompt, check_branches
from sordino.storage import write_bytes

# Entries are looked at again after so many seconds: a dropped file appears by itself, and a busy server does not scan all day.
_FRESH_SECONDS = 0.5
_KEPT_PROMPTS = 64
_LOCK_SECONDS = 5.0


@dataclass(frozen=True)
class Voice:
    """An entry of the library and how well it fits the model. A broken one has no fit, nor has any where there is no model."""

    entry: Entry
    fit: Fit | None

    @property
    def usable(self) -> bool:
        return self.fit is not None and self.fit.kind != "no"

    @property
    def file(self) -> str:
        """The file's name as answers can say it: bytes that are no UTF-8, as old archives leave them, are spelled out."""
        return os.fsencode(self.entry.path.name).decode("utf-8", "backslashreplace")


class Voices:
    """The library as the server's routes see it. May be called from any thread.

    base: None while no model is loaded. rows: as many components a mixture may have to run here; None for any number.
    """

    def __init__(
        self,
        base: DescribedModel | None,
        library: Library,
        remembered: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        rows: int | None = None,
    ) -> None:
        self.base, self.library = base, library
        self._remembered, self._clock, self._rows = remembered, clock, rows
        self._lock = threading.Lock()
        self._seen_at = float("-inf")
        self._voices: list[Voice] = []
        self._read: OrderedDict[tuple[Path, int, int, int], StoredPrompt] = OrderedDict()
        self._default = self._recall()

    def all(self) -> list[Voice]:
        """Every entry, broken ones and those that do not fit among them."""
        with self._lock:
            if self._clock() - self._seen_at > _FRESH_SECONDS:
                self._look()
            return list(self._voices)

    def refresh(self) -> None:
        """See what was just written."""
        with self._lock:
            self._seen_at = float("-inf")

    def voice_of(self, entry: Entry) -> Voice:
        """An entry, and how well it fits."""
        if entry.error or self.base is None:
            return Voice(entry, None)
        try:
            return Voice(entry, self.base.fit_of(entry.d_model, entry.metadata, entry.parts))
        except SordinoError:
            return Voice(entry, None)

    def usable(self) -> list[Voice]:
        return [voice for voice in self.all() if voice.usable]

    def named(self, name: str) -> Voice:
        """The entry with this name or file name. Raises NotInLibrary with near misses."""
        for voice in self.all():
            if name in (voice.entry.name, voice.file):
                return voice
        # It may have come a moment ago.
        self.refresh()
        voices = self.all()
        for voice in voices:
            if name in (voice.entry.name, voice.file):
                return voice
        close = near_misses(name, [voice.entry.name for voice in voices if voice.usable])
        raise NotInLibrary(
            "no soft prompt has this name", where=name, do=f"did you mean {' or '.join(close)}?" if close else ""
        )

    def prompt(self, name: str) -> StoredPrompt:
        """The soft prompt, or the mixture, as its file is now.

        Raises NotInLibrary, SoftPromptFileError, DoesNotFit, EngineBusy (no model).
        """
        if self.base is None:
            raise EngineBusy("no model is loaded")
        path = self.library.open(self.named(name).entry)
        try:
            status = path.stat()
        except OSError as error:
            raise NotInLibrary(f"the file is gone ({error.strerror})", where=name) from error
        key = (path, status.st_size, status.st_mtime_ns, status.st_ino)
        with self._lock:
            known = self._read.get(key) if path.is_file() else None
            if known is not None:
                self._read.move_to_end(key)
        prompt = formats.read_any(path) if known is None else known
        fit = self.base.fit(prompt)
        if fit.kind == "no":
            raise DoesNotFit("the soft prompt does not fit the base model", where=name, got=fit.reason)
        with self._lock:
            self._read[key] = prompt
            while len(self._read) > _KEPT_PROMPTS:
                self._read.popitem(last=False)
        return prompt

    # The server's default ------------------------------------------------------------------------------------------

    @property
    def default(self) -> str | None:
        """The name of the default soft prompt; None where there is none, or its file is gone."""
        if self._default is None:
            return None
        try:
            return self.named(self._default).entry.name
        except NotInLibrary:
            return None

    def set_default(self, name: str | None) -> None:
        """Raises NotInLibrary, SoftPromptFileError, DoesNotFit, ConfigError (more components than rows), StorageError,
        EngineBusy (no model); the old default stays then.
        """
        if self.base is None:
            raise EngineBusy("no model is loaded")
        if name is not None:
            prompt = self.prompt(name)
            # Refused here: clients that do not choose would be refused at every request.
            if self._rows is not None:
                check_branches(prompt, self._rows)
            name = self._lasting(self.named(name))
        with self._lock:
            self._remember(self.base, name)
            self._default = name

    def _lasting(self, voice: Voice) -> str:
        """The file's name, where no other has it: the entry's own may be another's once a file is gone."""
        alone = sum(other.file == voice.file for other in self.all()) == 1
        return voice.file if alone else voice.entry.name

    def _recall(self) -> str | None:
        if self._remembered is None or self.base is None:
            return None
        name = _said_in(self._remembered).get(self.base.fingerprint or self.base.id)
        return name if isinstance(name, str) else None

    def _remember(self, base: DescribedModel, name: str | None) -> None:
        place = self._remembered
        if place is None:
            return
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # The file is every server's: one that writes between another's reading and writing would be forgotten.
            with FileLock(place.with_name(place.name + ".lock"), timeout=_LOCK_SECONDS):
                said = _said_in(place) | {base.fingerprint or base.id: name}
                write_bytes(place, json.dumps(said, indent=1, sort_keys=True).encode())
        except (OSError, BadInput) as error:
            reason = error.what if isinstance(error, BadInput) else error.strerror or error
            raise StorageError("the default cannot be remembered", where=self._remembered, got=reason) from error

    def _look(self) -> None:
        self._voices = [self.voice_of(entry) for entry in self.library.scan()]
        self._seen_at = self._clock()


def _said_in(place: Path) -> dict[str, object]:
    """What was remembered; nothing where the file is damaged."""
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
