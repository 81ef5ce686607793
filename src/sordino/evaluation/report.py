"""The report of an evaluation: its numbers, and sentences on what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sordino.evaluation import continuation_report, distance_report
from sordino.evaluation.conditions import Kind
from sordino.evaluation.confidence import Estimate, length_in_words
from sordino.evaluation.continuation_report import ContinuationReport
from sordino.evaluation.distance_report import DistanceReport, plain_table


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
    behind the text; None where the text gains nothing. text_tokens: its length. agreement: how often the model's likeliest word
    is the same as behind the text, with the soft prompt. agreement_without: the same with neither.
    """

    kept: Estimate | None
    text_tokens: int
    agreement: float
    agreement_without: float


@dataclass(frozen=True)
class Report:
    """n_tokens, worth: by the soft prompts' labels. n_tokens of a mixture: of all its components. worth: empty without training
    texts. off_domain: a text in another voice, without a soft prompt and with each. distilled: of a soft prompt that replaces a
    long text. distance: gains behind other text, continuations: what the model writes behind it, if measured.
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
            spread = "" if line.nll.interval is None else "{:.3f} to {:.3f}".format(*line.nll.interval)
            rows.append((heading[:60], str(line.tokens), f"{line.nll.value:.3f}", spread))
        table = plain_table(("in front of the text", "#tokens", "#loss", "95 % interval"), rows)
        if self.distance is not None:
            table += ["", *plain_table(distance_report.columns(self.distance), distance_report.rows(self.distance))]
        if self.continuations is not None:
            table += ["", *plain_table(continuation_report.COLUMNS, continuation_report.rows(self.continuations))]
        verdicts = []
        for label in self.n_tokens:
            named = f"{label}: " if len(self.n_tokens) > 1 else ""
            verdicts += [named + sentence for sentence in (verdict(self, label), damage(self, label)) if sentence]
        return "\n".join([*table, "", *verdicts, *(f"Note: {note}." for note in self.notes)])


def verdict(report: Report, label: str) -> str:
    """What a soft prompt does for the held-out texts, and how far it reaches."""
    reach = distance_report.reach(report.distance, label) if report.distance is not None else ""
    return f"{_effect(report, label)} {reach}".rstrip()


def _effect(report: Report, label: str) -> str:
    vectors = f"These {report.n_tokens[label]} vectors" if report.n_tokens[label] > 1 else "This vector"
    if report.distilled is not None:
        return _verdict_on_distilled(report.distilled, vectors, report.n_tokens[label])
    gain = report.heldout.line("no prompt").differences[label]
    if gain.value <= 0:
        return f"{vectors} did not help: the model predicts the held-out texts at least as well without."
    if gain.interval is not None and not gain.excludes_zero:
        return f"{vectors} may have helped, but by less ({gain.value:.3f} nats per token) than so little text can show."
    worth = report.worth.get(label)
    if worth is None:
        own = report.heldout.line("soft prompt", label)
        none = own.nll.value + gain.value
        return (
            f"{vectors} brought the loss on the held-out texts from {none:.3f} to {own.nll.value:.3f} nats per token."
        )
    tokens = worth.tokens.value
    if tokens == 0.0:
        return f"{vectors} helped, but less than {worth.lengths[0]} tokens of real text in front would."
    between = f" (95 % interval {' to '.join(ends)})" if (ends := _ends(worth)) else ""
    verb = "are" if report.n_tokens[label] > 1 else "is"
    if math.isinf(tokens):
        return (
            f"{vectors} {verb} worth more than {worth.lengths[-1]} tokens of real text: with them the model predicts the "
            "held-out texts better than behind the longest excerpt that was tried."
        )
    return (
        f"{vectors} {verb} worth {tokens:.0f} tokens of real text{between}: an excerpt of that length in front "
        "would help the model as much."
    )


def _verdict_on_distilled(distilled: Distilled, vectors: str, n_tokens: int) -> str:
    kept = distilled.kept
    if kept is None:
        return "The text does not help the model to predict what it wrote behind it, so there is nothing to keep."
    ends = kept.interval
    between = f" (95 % interval {ends[0]:.0%} to {ends[1]:.0%})" if ends is not None else ""
    verb = "keep" if n_tokens > 1 else "keeps"
    return (
        f"{vectors} {verb} {kept.value:.0%}{between} of what the text does for the model, in {n_tokens} positions instead of "
        f"{distilled.text_tokens}. The likeliest word is the same as behind the text in {distilled.agreement:.0%} of places; "
        f"with neither, in {distilled.agreement_without:.0%}."
    )


def damage(report: Report, label: str) -> str:
    """What a soft prompt does to a text in another voice, or "" if none was measured."""
    if report.off_domain is None:
        return ""
    own, none = report.off_domain.line("soft prompt", label), report.off_domain.line("no prompt")
    change = -none.differences[label].value
    return (
        f"On {report.off_domain.text}, a text that is not in this voice, the loss goes from {none.nll.value:.3f} to "
        f"{own.nll.value:.3f} ({change:+.3f}): {'what the voice costs elsewhere' if change > 0 else 'no damage'}."
    )


def explanation(measured: Measurement, first: str, row_tokens: int) -> list[str]:
    """What was measured and how to read it. first: the soft prompt that the other lines are compared with."""
    lines = [
        f"Measured on {_number(measured.tokens, 'token')} of {_number(measured.pieces, 'held-out text')}, "
        f"in windows of {row_tokens}; every line predicts the same tokens.",
        "Loss: how much each next token surprises the model, in nats; lower is better.",
        f"Over soft prompt: the loss on this line less the loss behind {first}; above 0, the soft prompt is better.",
    ]
    if measured.lines[0].nll.interval is None:
        return [*lines, "There is too little held-out text for intervals."]
    return [
        *lines,
        f"In brackets: 95 % intervals, drawn by {measured.unit} ({_number(measured.units, 'unit')}); "
        "a difference whose interval leaves out 0 is not chance.",
    ]


def summary(report: Report, label: str) -> dict[str, Any]:
    """The numbers for a soft prompt's file, as plain JSON."""
    heldout = report.heldout
    own = heldout.line("soft prompt", label)
    found: dict[str, Any] = {
        "tokens": heldout.tokens,
        "nll": {"soft_prompt": round(own.nll.value, 4), "no_prompt": round(heldout.line("no prompt").nll.value, 4)},
        "bits_per_byte": round(own.bits_per_byte, 4),
    }
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
        "continuations": continuation_report.to_json(report.continuations) if report.continuations else None,
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
        "interval": _ends(worth),
        "excerpt_tokens": list(worth.lengths),
    }


def _ends(worth: Worth) -> list[str] | None:
    """The interval's ends, for people."""
    spread = worth.tokens.interval
    return None if spread is None else [length_in_words(end, worth.lengths) for end in spread]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
