"""What is left of a soft prompt's gain after other text: the numbers, a table, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sordino.evaluation.conditions import Kind
from sordino.evaluation.confidence import Estimate, Table, brackets, cells
from sordino.evaluation.config import Between

NAMES: Mapping[Between, str] = {"foreign": "other texts", "own": "the same voice", "written": "the model's own writing"}


def named(between: Between, writer: str) -> str:
    """Texts of a kind, for people."""
    return NAMES[between] + (f" with {writer}" if writer else "")


def prompt_heading(label: str, hold: int | None) -> str:
    """A soft prompt, in a table where it is held and not."""
    return f"soft prompt {label}, {f'held from {hold}' if hold else 'not held'}"


@dataclass(frozen=True)
class DistanceLine:
    """One condition after texts of one kind.

    writer: the soft prompt that the model wrote them with, or "". hold: of the condition's soft prompt; changed: another than in
    its file. positions: what stands in front takes of the context. gains: nats a token, by distance. kept: the gain over that at 0,
    by distance; empty where no gain at 0 is certain.
    """

    between: Between
    writer: str
    kind: Kind
    label: str
    hold: int | None
    changed: bool
    positions: int
    gains: Mapping[int, Estimate]
    kept: Mapping[int, Estimate]

    @property
    def heading(self) -> str:
        """The condition, in a table."""
        if self.kind == "soft prompt":
            return prompt_heading(self.label, self.hold)
        return f'"{self.label}"' if self.kind == "instruction" else self.label


@dataclass(frozen=True)
class DistanceReport:
    """distances: tokens between, 0 first. tokens: that are judged at each; parts: of the held-out texts, each with other texts in
    front. unit, units: what intervals are drawn from. notes: what was left out.
    """

    distances: tuple[int, ...]
    tokens: int
    parts: int
    unit: str
    units: int
    lines: tuple[DistanceLine, ...]
    notes: tuple[str, ...]

    def lines_of(self, label: str) -> list[DistanceLine]:
        """The lines of a soft prompt after the first kind of text: as its file is, then with another hold or none."""
        own = [line for line in self.lines if line.kind == "soft prompt" and line.label == label]
        return sorted((line for line in own if line.between == own[0].between), key=lambda line: line.changed)


def table(report: DistanceReport) -> Table:
    """Gains, the share kept at the longest distance, and its interval."""
    behind = [f"#{distance:,}" for distance in report.distances]
    heads = ["text between", "in front of it", "#positions", *behind, f"#kept at {report.distances[-1]:,}", ""]
    rows = [
        [
            named(line.between, line.writer),
            line.heading,
            str(line.positions),
            *(f"{line.gains[d].value:+.3f}" if d in line.gains else "" for d in report.distances),
            *cells(line.kept.get(report.distances[-1]), "{:.0%}"),
        ]
        for line in report.lines
    ]
    return Table(heads, rows, "Gain after other text")


def explanation(report: DistanceReport) -> list[str]:
    """What the table shows."""
    lines = [
        "Gain, in nats a token: the loss without anything in front minus the loss with it, when so many tokens of other text stand "
        f"in between. Measured on {report.tokens:,} held-out tokens in {report.parts} parts, each after text of its own.",
        "Kept: the share of the gain at 0 that is left at that distance. Positions: how much of the context is taken in front.",
    ]
    if any(line.kept and all(share.interval is None for share in line.kept.values()) for line in report.lines):
        return [*lines, "No interval: there is too little text, or the gain at 0 may be chance."]
    return [*lines, f"In brackets: 95 % intervals, drawn by {report.unit} ({report.units} units)."]


def reach(report: DistanceReport, label: str) -> str:
    """What is left of a soft prompt's gain, in sentences; "" where there was none."""
    sentences = []
    for line in report.lines_of(label):
        if line.kept:
            shares = [f"{share.value:.0%} at {distance:,}" for distance, share in line.kept.items()]
            shares[0] += " tokens"
            shares[-1] = f"{shares[-1]} {brackets(line.kept[max(line.kept)].interval, '{:.0%}')}".rstrip()
            held = f"Held from {line.hold} tokens" if line.hold else "Not held"
            first = f"After {NAMES[line.between]} it keeps this share of its gain"
            sentences.append(f"{held if line.changed else first}: {_listed(shares)}.")
    return " ".join(sentences)


def kept_summary(report: DistanceReport, label: str) -> dict[str, float]:
    """The shares kept, as the file is used, by distance: for a soft prompt's file."""
    line = next((line for line in report.lines_of(label) if not line.changed), None)
    return {str(distance): round(share.value, 4) for distance, share in line.kept.items()} if line else {}


def to_json(report: DistanceReport) -> dict[str, Any]:
    """As plain JSON."""
    return {
        "distances": list(report.distances),
        "tokens": report.tokens,
        "parts": report.parts,
        "bootstrap": {"unit": report.unit, "units": report.units},
        "lines": [
            {
                "between": line.between,
                "writer": line.writer or None,
                "kind": line.kind,
                "label": line.label,
                "hold": line.hold,
                "as_in_file": not line.changed,
                "positions": line.positions,
                "behind": [
                    {
                        "distance": distance,
                        "gain": gain.value,
                        "interval": gain.interval,
                        "kept": share.value if (share := line.kept.get(distance)) else None,
                        "kept_interval": share.interval if share else None,
                    }
                    for distance, gain in line.gains.items()
                ],
            }
            for line in report.lines
        ],
    }


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
