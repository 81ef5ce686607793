"""What continuations after other text are like: the numbers, and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sordino.evaluation.conditions import NO_PROMPT
from sordino.evaluation.confidence import Estimate, cells
from sordino.evaluation.distance_report import prompt_heading


@dataclass(frozen=True)
class ContinuationLine:
    """What was written with one soft prompt, or without. label: "" without. hold: of the soft prompt; changed: another than in its
    file. repeated: share of four tokens in a row that were there before; more: that less what repeats without a soft prompt.
    """

    label: str
    hold: int | None
    changed: bool
    distinct: float
    repeated: Estimate
    more: Estimate
    tokens: Estimate

    @property
    def heading(self) -> str:
        return prompt_heading(self.label, self.hold) if self.label else NO_PROMPT


@dataclass(frozen=True)
class ContinuationReport:
    """count: continuations of each line, of at most `tokens` tokens, after `behind` tokens of other text. The last line has no
    soft prompt.
    """

    count: int
    tokens: int
    behind: int
    lines: tuple[ContinuationLine, ...]


COLUMNS = ("continuations", "#distinct-2", "#repeated", "", "#more than without", "", "#tokens")


def rows(report: ContinuationReport) -> list[list[str]]:
    """The table's cells, see COLUMNS."""
    return [
        [
            line.heading,
            f"{line.distinct:.3f}",
            *cells(line.repeated, "{:.1%}"),
            *cells(line.more if line.label else None, "{:+.1%}"),
            f"{line.tokens.value:.1f}",
        ]
        for line in report.lines
    ]


def explanation(report: ContinuationReport) -> list[str]:
    """What the table shows."""
    return [
        f"{report.count} continuations of at most {report.tokens} tokens, after {report.behind} tokens of other text; the same "
        "texts and seeds on every line.",
        "Distinct-2: how many of their pairs of neighbouring tokens differ. Repeated: which share of four tokens in a row was "
        "there before in the same continuation.",
    ]


def to_json(report: ContinuationReport) -> dict[str, Any]:
    """As plain JSON."""
    return {
        "count": report.count,
        "tokens": report.tokens,
        "behind": report.behind,
        "lines": [
            {
                "label": line.label or None,
                "hold": line.hold,
                "as_in_file": not line.changed,
                "distinct_2": line.distinct,
                "repeated": {"value": line.repeated.value, "interval": line.repeated.interval},
                "repeated_more_than_without": {"value": line.more.value, "interval": line.more.interval},
                "tokens": {"value": line.tokens.value, "interval": line.tokens.interval},
            }
            for line in report.lines
        ],
    }
