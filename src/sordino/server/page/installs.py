"""Soft prompts that are being installed from galleries and the Hub: in the background, with progress, until they are cancelled."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from sordino.errors import NameTaken, SordinoError
from sordino.library.installing import Installed
from sordino.server.errors import refused

log = logging.getLogger("sordino.server")

_AT_ONCE = 3
# Ended ones are listed until as many others were begun.
_MOST = 50

Progress = Callable[[int, int], None]


class _Cancelled(Exception):
    """Raised where progress is reported, so that a download ends; what has arrived stays for the next."""


@dataclass
class _Install:
    source: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
    done: int = 0
    total: int = 0
    error: str = ""
    code: str | None = None
    # Of the entry in the library.
    name: str = ""
    new: bool = True
    cancelled: bool = False

    def report(self, done: int, total: int) -> None:
        if self.cancelled:
            raise _Cancelled
        self.done, self.total = done, total

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "cancelled"}


class Installs:
    """Those of a server. May be used from any thread."""

    def __init__(self) -> None:
        self._lock, self._room = threading.Lock(), threading.Semaphore(_AT_ONCE)
        self._installs: OrderedDict[str, _Install] = OrderedDict()

    def status(self) -> list[dict[str, Any]]:
        """The latest last. source: as it was asked for. name: in the library, once it is there; new: False where it was before.

        error: in a sentence, once it failed, and code as in an answer of the server.
        """
        with self._lock:
            return [one.to_json() for one in self._installs.values()]

    def start(self, source: str, work: Callable[[Progress], Installed], done: Callable[[], None]) -> None:
        """Call `work` in the background, unless this source is being installed already, and `done` when it has ended."""
        with self._lock:
            there = self._installs.get(source)
            if there is not None and there.state in ("waiting", "running"):
                return
            self._installs[source] = one = _Install(source)
            self._installs.move_to_end(source)
            for old in [key for key, each in self._installs.items() if each.state not in ("waiting", "running")][
                :-_MOST
            ]:
                del self._installs[old]
        threading.Thread(target=self._run, args=(one, work, done), daemon=True, name="install").start()

    def cancel(self, source: str) -> None:
        with self._lock:
            if (one := self._installs.get(source)) is not None:
                one.cancelled = True

    def _run(self, one: _Install, work: Callable[[Progress], Installed], done: Callable[[], None]) -> None:
        with self._room:
            one.state = "running"
            try:
                one.report(0, 0)
                found = work(one.report)
                one.name, one.new, one.state = found.entry.name, found.new, "done"
            except _Cancelled:
                one.state = "cancelled"
            except SordinoError as error:
                public = refused(error)
                one.error, one.code = public.message, public.code
                # A library of the Hub may have made another error of the cancellation.
                one.state = "cancelled" if one.cancelled and not isinstance(error, NameTaken) else "failed"
            except Exception:
                log.exception("%r cannot be installed", one.source)
                one.error, one.state = "an error in the server: see its log", "failed"
            finally:
                done()
