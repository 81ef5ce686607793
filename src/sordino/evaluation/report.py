"""The report of an evaluation: its numbers. What they mean is in `verdict`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sordino.evaluation import continuations, distance_report
from sordino.evaluation.conditions import Kind
from sordino.evaluation.confidence import Estimate, Table, cells, length_in_words
from sordino.evaluation.continuations import ContinuationReport
from sordino.evaluation.distance_report import DistanceReport
from sordino.evaluation.verdict import damage, interval_ends, verdict


@dataclass(frozen=True)
class ConditionLine:
    """One condition. tokens: its length. nll: nats per token. differences: for each soft prompt, this condition's loss less the
    soft prompt's, so above 0 where the soft prompt is better.
    """

    kind: Kind
    label: str
    tokens: int
    nll: Estimate
    bits_per_byte: float
    differences: Mapping[str, Estimate]


@dataclass(frozen=True)
class Measurement:
    """One text under several conditions. text: its description. tokens: targets; bytes: of their text, UTF-8. unit, units: what
    intervals are drawn from, and how many there are.
    """

    text: str
    pieces: int
    tokens: int
    bytes: int
    unit: str
    units: int
    lines: tuple[ConditionLine, ...]

    def line(self, kind: Kind, label: str = "") -> ConditionLine:
        """The first line of this kind (and label). Raises KeyError."""
        for line in self.lines:
            if line.kind == kind and label in ("", line.label):
                return line
        raise KeyError(kind, label)


@dataclass(frozen=True)
class Worth:
    """How many tokens of real text give a soft prompt's loss: 0.0 means fewer than the shortest excerpt, infinity more than the
    longest. lengths: of the excerpts.
    """

    tokens: Estimate
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Distilled:
    """How much of a long text's effect its soft prompt keeps. kept: the share of the text's gain, in nats, on what the model wrote
    after the text; None where the text gains nothing. text_tokens: its length. agreement: how often the model's likeliest word
    is the same as after the text, with the soft prompt. agreement_without: the same with neither.
    """

    kept: Estimate | None
    text_tokens: int
    agreement: float
    agreement_without: float


@dataclass(frozen=True)
class Report:
    """n_tokens, worth: by the soft prompts' labels. n_tokens of a mixture: of all its components. worth: empty without training
    texts. off_domain: a text in another voice, without a soft prompt and with each. distilled: of a soft prompt that replaces a
    long text. distance: gains after other text, continuations: what the model writes after it, if measured.
    """

    n_tokens: Mapping[str, int]
    heldout: Measurement
    worth: Mapping[str, Worth]
    off_domain: Measurement | None
    notes: tuple[str, ...]
    distilled: Distilled | None = None
    distance: DistanceReport | None = None
    continuations: ContinuationReport | None = None

    def __str__(self) -> str:
        """A table of the held-out losses, a verdict on each soft prompt, and the notes."""
        rows = []
        for line in self.heldout.lines:
            heading = line.kind if line.label in ("", line.kind) else f"{line.kind} {line.label}"
            rows.append((heading[:60], str(line.tokens), *cells(line.nll, "{:.3f}")))
        shown = Table(("in front of the text", "#tokens", "#loss", "95 % interval"), rows).plain()
        if self.distance is not None:
            shown += ["", *distance_report.table(self.distance).plain()]
        if self.continuations is not None:
            shown += ["", *continuations.table(self.continuations).plain()]
        verdicts = []
        for label in self.n_tokens:
            named = f"{label}: " if len(self.n_tokens) > 1 else ""
            verdicts += [named + sentence for sentence in (verdict(self, label), damage(self, label)) if sentence]
        return "\n".join([*shown, "", *verdicts, *(f"Note: {note}." for note in self.notes)])


def summary(report: Report, label: str) -> dict[str, Any]:
    """The numbers for a soft prompt's file, as plain JSON."""
    heldout = report.heldout
    own = heldout.line("soft prompt", label)
    found: dict[str, Any] = {
        "tokens": heldout.tokens,
        "nll": {"soft_prompt": round(own.nll.value, 4), "no_prompt": round(heldout.line("no prompt").nll.value, 4)},
        "bits_per_byte": round(own.bits_per_byte, 4),
    }
    gain = heldout.line("no prompt").differences[label]
    if gain.interval is not None:
        found["gain_interval"] = [round(end, 4) for end in gain.interval]
    for kind, key in (("instruction", "best_instruction"), ("excerpt", "best_excerpt")):
        losses = [line.nll.value for line in heldout.lines if line.kind == kind]
        if losses:
            found["nll"][key] = round(min(losses), 4)
    if report.distilled is not None:
        found["distilled"] = distilled_json(report.distilled)
    if label in report.worth:
        found["worth_tokens"] = in_words(report.worth[label])
    if report.off_domain is not None:
        found["off_domain"] = {
            "soft_prompt": round(report.off_domain.line("soft prompt", label).nll.value, 4),
            "no_prompt": round(report.off_domain.line("no prompt").nll.value, 4),
        }
    if report.distance is not None and (kept := distance_report.kept_summary(report.distance, label)):
        found["gain_kept"] = kept
    return found


def distilled_json(distilled: Distilled) -> dict[str, Any]:
    kept = distilled.kept
    return {
        "kept": kept and round(kept.value, 4),
        "interval": kept and kept.interval and [round(end, 4) for end in kept.interval],
        "text_tokens": distilled.text_tokens,
        "agreement": round(distilled.agreement, 4),
        "agreement_without": round(distilled.agreement_without, 4),
    }


def in_words(worth: Worth) -> str:
    """ "143", "<20" or ">512"."""
    return length_in_words(worth.tokens.value, worth.lengths)


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON. A length beyond the excerpts is null; its bound is in `text`."""
    return {
        "heldout": _measurement_json(report.heldout),
        "off_domain": _measurement_json(report.off_domain) if report.off_domain else None,
        "soft_prompts": [
            {
                "label": label,
                "n_tokens": report.n_tokens[label],
                "worth": _worth_json(report.worth.get(label)),
                "verdict": verdict(report, label),
                "damage": damage(report, label),
            }
            for label in report.n_tokens
        ],
        "distance": distance_report.to_json(report.distance) if report.distance else None,
        "continuations": continuations.to_json(report.continuations) if report.continuations else None,
        "notes": list(report.notes),
        **({"distilled": distilled_json(report.distilled)} if report.distilled is not None else {}),
    }


def _measurement_json(measured: Measurement) -> dict[str, Any]:
    return {
        "text": measured.text,
        "pieces": measured.pieces,
        "tokens": measured.tokens,
        "bytes": measured.bytes,
        "bootstrap": {"unit": measured.unit, "units": measured.units},
        "conditions": [
            {
                "kind": line.kind,
                "label": line.label,
                "tokens": line.tokens,
                "nll": line.nll.value,
                "interval": line.nll.interval,
                "bits_per_byte": line.bits_per_byte,
                "less_soft_prompt": {
                    label: {"nll": difference.value, "interval": difference.interval}
                    for label, difference in line.differences.items()
                },
            }
            for line in measured.lines
        ],
    }


def _worth_json(worth: Worth | None) -> dict[str, Any] | None:
    if worth is None:
        return None
    tokens = worth.tokens.value
    return {
        "text": in_words(worth),
        "tokens": tokens if 0 < tokens < math.inf else None,
        "interval": interval_ends(worth),
        "excerpt_tokens": list(worth.lengths),
    }
