"""What a run leaves besides the soft prompt: its held-out numbers, texts with and without it, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sordino.cli.console import err, warn
from sordino.cli.evaluate import explanation
from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import SordinoError
from sordino.evaluation.analysis.inspection import Inside, affordable, depth_of, surface_of, told
from sordino.evaluation.measuring import EvaluateConfig
from sordino.evaluation.measuring import evaluate as measure
from sordino.evaluation.off_domain import packaged_text
from sordino.evaluation.report import Report as Measured
from sordino.evaluation.report import damage, verdict
from sordino.formats import file_disclosure
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.training.config import TrainConfig
from sordino.training.report import Condition, Report, read_events, write_report
from sordino.training.report import Inside as Shown
from sordino.training.run import Prepared

# Positions, of shortened prompts and of what they read, that a look inside may run forward. A step of 4 x 128 tokens is worth 1,024
# of them (the gradient costs as much again), so of five minutes on two cores (107 steps) this is under 5 %, attention included.
INSIDE_BUDGET = 4_800


_TOO_LONG = "What each virtual token does for the loss was not measured: of so many it takes long, and `sordino inspect` does it."


@dataclass(frozen=True)
class Judging:
    """How a run's result is measured. instructions: to compare with, by default what the metadata suggest. off_domain: also
    on a text in another voice.
    """

    config: EvaluateConfig
    instructions: tuple[str, ...] = ()
    off_domain: bool = True


def after_training(config: TrainConfig) -> Judging:
    """A quick look, small beside the training and in no more memory; `sordino evaluate` is for a thorough one."""
    rows = min(config.row_tokens, EvaluateConfig().row_tokens)
    return Judging(EvaluateConfig(limit=2048, excerpts=1, row_tokens=rows, pass_tokens=config.pass_tokens))


def label_of(prompt: SoftPrompt) -> str:
    return prompt.metadata.name or "soft prompt"


def measured_result(prepared: Prepared, prompt: SoftPrompt, judging: Judging) -> Measured | None:
    """The held-out numbers. None, with a warning, where they cannot be had: the soft prompt is worth keeping all the same."""
    heldout = prepared.splits.heldout
    if not heldout:
        return None
    try:
        with err.status("Measuring on the held-out texts ...") as status:
            return measure(
                prepared.base,
                {label_of(prompt): prompt},
                heldout,
                judging.config,
                instructions=judging.instructions,
                training=prepared.splits.train,
                off_domain=packaged_text([prompt], heldout) if judging.off_domain else None,
                progress=lambda done, total: status.update(f"Measuring on the held-out texts ... {done / total:.0%}"),
            )
    except KeyboardInterrupt:
        warn("the measuring was interrupted: the file is written without held-out results")
    except SordinoError as error:
        warn(f"there are no held-out results: {error.message}")
    return None


def sample_pairs(
    prepared: Prepared, prompt: SoftPrompt, texts: Sequence[str], *, seed: int, tokens: int
) -> list[dict[str, str]]:
    """Each text continued with the soft prompt and without, from one seed: {"prompt", "with", "without"} objects."""
    base = prepared.base
    # A model without BOS has nothing to begin an empty text from.
    alone = [text for text in texts if text or base.bos_ids]
    requests = [TextRequest(text, prompt, seed) for text in texts] + [TextRequest(text, None, seed) for text in alone]
    with err.status("Writing samples ..."):
        said = complete(base, requests, Sampling(max_tokens=tokens))
    without = dict(zip(alone, said[len(texts) :], strict=True))
    return [
        {"prompt": text, "with": continued, "without": without.get(text, "")}
        for text, continued in zip(texts, said[: len(texts)], strict=True)
    ]


def write_run_report(
    folder: Path,
    prepared: Prepared,
    prompt: SoftPrompt,
    samples: Sequence[Mapping[str, str]],
    measured: Measured | None,
    judging: Judging,
    nearest: list[list[tuple[str, float]]],
) -> None:
    """report.html and report.png in the run's folder. Raises StorageError, TrainingError."""
    label = label_of(prompt)
    sentences: list[str] = []
    if measured is not None:
        sentences = [verdict(measured, label), damage(measured, label)]
        sentences += explanation(measured.heldout, label, judging.config.row_tokens)
        sentences += [f"Note: {note}." for note in measured.notes]
    report = Report(
        prompt,
        read_events(folder),
        nearest,
        inside=_inside(prepared, prompt, judging),
        heldout=_conditions(measured, label) if measured is not None else (),
        verdicts=[sentence for sentence in sentences if sentence],
        samples=samples,
        disclosure=file_disclosure(prompt),
        notes=(prepared.splits.how, *prepared.notes, *prepared.splits.duplicates),
    )
    write_report(folder, report)


def _inside(prepared: Prepared, prompt: SoftPrompt, judging: Judging) -> Shown | None:
    """A short look inside, on the held-out texts. None, with a warning, where it cannot be had."""
    texts, targets = prepared.splits.heldout or prepared.splits.validation, affordable(prompt.n_tokens, INSIDE_BUDGET)
    try:
        with err.status("Looking inside ..."):
            config = judging.config
            depth = depth_of(
                prepared.base,
                prompt,
                ("the held-out texts" if prepared.splits.heldout else "the validation texts", texts),
                limit=min(config.limit, targets),
                row_tokens=config.row_tokens,
                pass_tokens=config.pass_tokens,
            ) if texts and targets else None  # fmt: skip
            looked = Inside(label_of(prompt), prompt, surface_of(prepared.base, prompt), depth)
            return shown_in_report(looked, () if targets else (_TOO_LONG,))
    except KeyboardInterrupt:
        warn("looking inside was interrupted: the report is written without it")
    except SordinoError as error:
        warn(f"the report has no look inside: {error.message}")
    return None


def shown_in_report(looked: Inside, instead: Sequence[str] = ()) -> Shown:
    """The inspection, as the report takes it. instead: the sentences where nothing was measured."""
    from sordino.evaluation.analysis.pictures import inside_figure, rendered

    surface, depth = looked.surface, looked.depth
    columns = ["norm", "percentile of words"]
    cells = [
        [f"{norm:.2f}", f"{place:.0f}"] for norm, place in zip(surface.norms_P, surface.percentiles_P, strict=True)
    ]
    if depth is not None:
        columns += ["loss if left out", "attention"]
        for row, cost, share in zip(cells, depth.importance.costs, depth.attention.by_token_P, strict=True):
            row += [f"{cost:+.4f}", f"{share:.1%}"]
    return Shown(rendered(inside_figure([looked]), ".png"), told(depth) if depth else instead, columns, cells)


def _conditions(measured: Measured, label: str) -> list[Condition]:
    found = []
    for line in measured.heldout.lines:
        less = line.differences.get(label)
        found.append(
            Condition(
                line.kind,
                line.label,
                line.tokens,
                line.nll.value,
                line.bits_per_byte,
                line.nll.interval,
                less.value if less else None,
                less.interval if less else None,
            )
        )
    return found
