"""Which soft prompt a request gets.

The request decides: it names a soft prompt, or none. Where it leaves that open, OpenAI's routes use none and KoboldAI's the
server's default, which is remembered for each model by the model's fingerprint.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sordino import formats
from sordino.errors import BadInput, DoesNotFit, EngineBusy, NotInLibrary, SordinoError, StorageError
from sordino.library.entry import Entry
from sordino.library.library import Library
from sordino.library.names import near_misses
from sordino.library.trash import shown_name
from sordino.models.description import DescribedModel
from sordino.prompts.fit import Fit
from sordino.prompts.mixture import StoredPrompt
from sordino.storage import write_bytes

# A dropped file appears within this time, or where a scan takes long, within so many times as long: a busy server does not scan
# for every request.
_SCAN_SECONDS, _SCAN_TIMES = 0.5, 20
_MOST_CACHED = 64
_LOCK_SECONDS = 5.0


@dataclass(frozen=True)
class ServedPrompt:
    """An entry of the library and how well it fits the model; fit is None for a broken entry, and where no model is loaded."""

    entry: Entry
    fit: Fit | None

    @property
    def usable(self) -> bool:
        return self.fit is not None and self.fit.kind != "no"

    @property
    def file(self) -> str:
        """The file's name, for answers."""
        return shown_name(self.entry.path)


class ServedPrompts:
    """The library as the server's routes see it. May be called from any thread.

    base: None while no model is loaded. defaults: the file with each model's default soft prompt. check: raises ConfigError for a
    soft prompt that the backend does not support. left_out: why the remembered default is not used, or "".
    """

    def __init__(
        self,
        base: DescribedModel | None,
        library: Library,
        defaults: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        check: Callable[[StoredPrompt], None] = lambda prompt: None,
    ) -> None:
        self.base, self.library = base, library
        self._defaults, self._clock, self._check = defaults, clock, check
        self._lock = threading.Lock()
        self._scanned_at = self._scan_due = float("-inf")
        self._prompts: tuple[ServedPrompt, ...] = ()
        self._by_name: dict[str, ServedPrompt] = {}
        self._cache: OrderedDict[tuple[Path, int, int, int], StoredPrompt] = OrderedDict()
        self._default, self.left_out = self._load_default(), ""

    def all(self, *, since: float = float("-inf")) -> tuple[ServedPrompt, ...]:
        """Every entry, including broken ones and those that do not fit; the same object until one of them changes.

        since: as they were at this time of the clock, or later.
        """
        with self._lock:
            if self._clock() > self._scan_due or self._scanned_at < since:
                self._scan()
            return self._prompts

    def _scan(self) -> None:
        self._scanned_at = self._clock()
        known = {id(one.entry): one for one in self._prompts}
        prompts = tuple(known.get(id(entry)) or self.served(entry) for entry in self.library.scan())
        if prompts != self._prompts:
            self._prompts, self._by_name = prompts, {}
            for one in prompts:
                for name in (one.entry.name, one.file):
                    self._by_name.setdefault(name, one)
        now = self._clock()
        self._scan_due = now + max(_SCAN_SECONDS, _SCAN_TIMES * (now - self._scanned_at))

    def refresh(self) -> None:
        """Scan the library at the next call: a file was just written."""
        with self._lock:
            self._scan_due = float("-inf")

    def served(self, entry: Entry) -> ServedPrompt:
        """The entry, with its fit."""
        if entry.error or self.base is None:
            return ServedPrompt(entry, None)
        try:
            return ServedPrompt(entry, self.base.fit_of(entry.parts))
        except SordinoError:
            return ServedPrompt(entry, None)

    def usable(self) -> list[ServedPrompt]:
        return [one for one in self.all() if one.usable]

    def named(self, name: str) -> ServedPrompt:
        """The entry with this name or file name. Raises NotInLibrary with near misses."""
        found = self._find(name)
        if found is None:
            # It may have been added a moment ago. Many that ask at once wait for one scan.
            found = self._find(name, since=self._clock())
        if found is not None:
            return found
        close = near_misses(name, [one.entry.name for one in self.usable()])
        raise NotInLibrary(
            "no soft prompt has this name", where=name, do=f"did you mean {' or '.join(close)}?" if close else ""
        )

    def _find(self, name: str, since: float = float("-inf")) -> ServedPrompt | None:
        self.all(since=since)
        return self._by_name.get(name)

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
            cached = self._cache.get(key) if path.is_file() else None
            if cached is not None:
                self._cache.move_to_end(key)
        prompt = formats.read_any(path) if cached is None else cached
        fit = self.base.fit(prompt)
        if fit.kind == "no":
            raise DoesNotFit("the soft prompt does not fit the base model", where=name, got=fit.reason)
        with self._lock:
            self._cache[key] = prompt
            while len(self._cache) > _MOST_CACHED:
                self._cache.popitem(last=False)
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
        """Raises NotInLibrary, SoftPromptFileError, DoesNotFit, ConfigError (not supported by the backend), StorageError,
        EngineBusy (no model); the old default stays then.
        """
        if self.base is None:
            raise EngineBusy("no model is loaded")
        if name is not None:
            # Refused here: clients that do not choose would be refused at every request.
            self._check(self.prompt(name))
            name = self._unique_name(self.named(name))
        with self._lock:
            self._save_default(self.base, name)
            self._default, self.left_out = name, ""

    def check_default(self) -> None:
        """Leave out a remembered default that does not fit or that the backend does not support, until there is another: each
        request that leaves the choice open would be refused. `left_out` says why. One whose file is gone may come back.
        """
        name = self.default
        if name is None:
            return
        try:
            self._check(self.prompt(name))
        except NotInLibrary:
            return
        except SordinoError as error:
            self.left_out = f"the default soft prompt {name} is not used here: {error.message}"
            self._default = None

    def _unique_name(self, prompt: ServedPrompt) -> str:
        """The file's name where no other file has it: the entry's own may pass to another once a file is gone."""
        is_unique = sum(other.file == prompt.file for other in self.all()) == 1
        return prompt.file if is_unique else prompt.entry.name

    def _load_default(self) -> str | None:
        if self._defaults is None or self.base is None:
            return None
        name = _read_defaults(self._defaults).get(model_key(self.base))
        return name if isinstance(name, str) else None

    def _save_default(self, base: DescribedModel, name: str | None) -> None:
        path = self._defaults
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # All servers of this user share the file: without a lock one would overwrite what another just wrote.
            with FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_SECONDS):
                defaults = _read_defaults(path) | {model_key(base): name}
                write_bytes(path, json.dumps(defaults, indent=1, sort_keys=True).encode())
        except (OSError, BadInput) as error:
            reason = error.what if isinstance(error, BadInput) else error.strerror or error
            raise StorageError("the default cannot be saved", where=path, got=reason) from error


def model_key(base: DescribedModel) -> str:
    """What identifies a model in files and caches: its fingerprint, or its id where it has none."""
    return base.fingerprint or base.id


def _read_defaults(path: Path) -> dict[str, object]:
    """Soft prompts by model; none where the file is damaged."""
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return defaults if isinstance(defaults, dict) else {}
