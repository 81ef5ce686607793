"""Forty instructions of ours that a program can check: does a model still do what it is asked after a soft prompt?

instructions.jsonl, a line each: `ask`, what the answer must be, and `good`, an answer that is. The checks are plain ones, so an
answer that happens to fit counts, for every side alike.

    has       one of these words or signs            lacks    none of these
    all       all of these                           some     [n, words]: n of these at least
    starts    with one of these                      ends     with one of these, full stops aside
    words     [fewest, most]                         lines    [fewest, most] that are not empty
    matches   a regular expression, anywhere
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "instructions.jsonl"


@dataclass(frozen=True)
class Instruction:
    """checks: what the answer must be, by the names above."""

    ask: str
    good: str
    checks: Mapping[str, Any]

    def followed(self, answer: str) -> bool:
        return all(_CHECKS[name](answer.strip(), wanted) for name, wanted in self.checks.items())


def read_instructions(file: Path = FILE) -> list[Instruction]:
    """Raises KeyError for a check that there is not."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        given = json.loads(line)
        checks = {name: wanted for name, wanted in given.items() if name not in ("ask", "good")}
        if unknown := set(checks) - set(_CHECKS):
            raise KeyError(f"{given['ask']!r}: no such check: {', '.join(sorted(unknown))}")
        found.append(Instruction(given["ask"], given["good"], checks))
    return found


def _among(answer: str, words: list[str]) -> list[str]:
    """The words that begin somewhere in the answer: "grape" is in "grapes", "hat" not in "that"."""
    return [word for word in words if re.search(rf"(?<!\w){re.escape(word)}", answer, re.IGNORECASE)]


def _within(count: int, limits: list[int]) -> bool:
    return limits[0] <= count <= limits[1]


_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "has": lambda answer, words: bool(_among(answer, words)),
    "lacks": lambda answer, words: not _among(answer, words),
    "all": lambda answer, words: _among(answer, words) == words,
    "some": lambda answer, wanted: len(_among(answer, wanted[1])) >= wanted[0],
    "starts": lambda answer, beginnings: answer.lower().startswith(tuple(beginnings)),
    "ends": lambda answer, endings: answer.lower().rstrip(".!\"' ").endswith(tuple(endings)),
    "words": lambda answer, limits: _within(len(answer.split()), limits),
    "lines": lambda answer, limits: _within(sum(bool(line.strip()) for line in answer.splitlines()), limits),
    "matches": lambda answer, pattern: re.search(pattern, answer) is not None,
}
