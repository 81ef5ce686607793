"""What held-out results mean, in sentences: the same ones on the command line, in a run's report and on the page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sordino.evaluation import distance_report
from sordino.evaluation.confidence import length_in_words

if TYPE_CHECKING:
    from sordino.evaluation.report import Distilled, Measurement, Report, Worth


def verdict(report: Report, label: str) -> str:
    """What a soft prompt does for the held-out texts, beside an instruction, and how far it reaches."""
    reach = distance_report.reach(report.distance, label) if report.distance is not None else ""
    return " ".join(filter(None, (_effect(report, label), _beside_instruction(report, label), reach)))


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
    between = f" (95 % interval {' to '.join(ends)})" if (ends := interval_ends(worth)) else ""
    verb = "are" if report.n_tokens[label] > 1 else "is"
    if math.isinf(tokens):
        return (
            f"{vectors} {verb} worth more than {worth.lengths[-1]} tokens of real text: with them the model predicts the "
            "held-out texts better than after the longest excerpt that was tried."
        )
    return (
        f"{vectors} {verb} worth {tokens:.0f} tokens of real text{between}: an excerpt of that length in front "
        "would help the model as much."
    )


def _beside_instruction(report: Report, label: str) -> str:
    """How a soft prompt that helps compares with the best instruction that was tried; "" where none was."""
    gain = report.heldout.line("no prompt").differences[label]
    lines = [line for line in report.heldout.lines if line.kind == "instruction"]
    if report.distilled is not None or not lines or gain.value <= 0 or (gain.interval and not gain.excludes_zero):
        return ""
    less = min(lines, key=lambda line: line.nll.value).differences[label]
    subject = "They are" if report.n_tokens[label] > 1 else "It is"
    if less.interval is not None and not less.excludes_zero:
        return f"{subject} about as good as the best instruction that was tried."
    better = "better" if less.value > 0 else "worse"
    return f"{subject} {abs(less.value):.2f} nats per token {better} than the best instruction that was tried."


def _verdict_on_distilled(distilled: Distilled, vectors: str, n_tokens: int) -> str:
    kept = distilled.kept
    if kept is None:
        return "The text does not help the model to predict what it wrote after it, so there is nothing to keep."
    ends = kept.interval
    between = f" (95 % interval {ends[0]:.0%} to {ends[1]:.0%})" if ends is not None else ""
    verb = "keep" if n_tokens > 1 else "keeps"
    return (
        f"{vectors} {verb} {kept.value:.0%}{between} of what the text does for the model, in {n_tokens} positions instead of "
        f"{distilled.text_tokens}. The likeliest word is the same as after the text in {distilled.agreement:.0%} of places; "
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
        f"Over soft prompt: the loss on this line less the loss after {first}; above 0, the soft prompt is better.",
    ]
    if measured.lines[0].nll.interval is None:
        return [*lines, "There is too little held-out text for intervals."]
    return [
        *lines,
        f"In brackets: 95 % intervals, drawn by {measured.unit} ({_number(measured.units, 'unit')}); "
        "a difference whose interval leaves out 0 is unlikely to be chance.",
    ]


def interval_ends(worth: Worth) -> list[str] | None:
    """The interval's ends, for people."""
    spread = worth.tokens.interval
    return None if spread is None else [length_in_words(end, worth.lengths) for end in spread]


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
