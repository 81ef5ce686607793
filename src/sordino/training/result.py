"""What a run leaves: its soft prompt's file, the held-out numbers and samples in it, and a report.

What goes wrong with numbers, samples or inspection is a warning: the soft prompt is worth keeping without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import BadInput, SordinoError
from sordino.evaluation.analysis.inspection import Inspection, affordable, depth_of, findings, surface_of
from sordino.evaluation.conditions import Baselines
from sordino.evaluation.config import EvaluateConfig, InspectConfig
from sordino.evaluation.measuring import evaluate
from sordino.evaluation.off_domain import packaged_text
from sordino.evaluation.report import Report, damage, explanation, summary, verdict
from sordino.formats import file_disclosure, write
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.nearest import nearest_words
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.training.config import TrainConfig
from sordino.training.events import (
    HTML,
    Disclosed,
    Evaluated,
    Finished,
    OnEvent,
    PromptWritten,
    ReportWritten,
    Warned,
    Working,
)
from sordino.training.job import Job
from sordino.training.report import HeldoutLine, InspectionTable, RunReport, read_events, write_report
from sordino.training.run import PreparedRun, finish

# Positions, of shortened prompts and of what they read, that an inspection may run forward. A step of 4 x 128 tokens is worth
# 1,024 of them (the gradient costs as much again), so of five minutes on two cores (107 steps) this is under 5 %, attention
# included.
INSPECTION_BUDGET = 4_800

_TOO_LONG = "What each virtual token does for the loss was not measured: of so many it takes long, and `sordino inspect` does it."


@dataclass(frozen=True)
class Judging:
    """How a run's result is measured. instructions: to compare with, by default what the metadata suggest. off_domain: also
    on a text in another voice.
    """

    config: EvaluateConfig
    instructions: tuple[str, ...] = ()
    off_domain: bool = True


@dataclass(frozen=True)
class TrainResult:
    """prompt: with its metadata, as in `file`. report: the held-out numbers, None where they cannot be had. folder: the run's,
    with report.html.
    """

    prompt: SinglePrompt
    report: Report | None
    file: Path
    folder: Path


def after_training(config: TrainConfig) -> Judging:
    """A quick measurement, small beside the training and in no more memory; `sordino evaluate` is for a thorough one."""
    rows = min(config.row_tokens, EvaluateConfig().row_tokens)
    return Judging(EvaluateConfig(limit=2048, excerpt_draws=1, row_tokens=rows, pass_tokens=config.pass_tokens))


def write_result(
    job: Job, prepared: PreparedRun, finished: Finished, judging: Judging, on_event: OnEvent
) -> TrainResult:
    """Measure, then write the soft prompt's file and the report. Raises BadInput, StorageError."""
    draft = finish(prepared, finished, job.metadata, [], {})
    assert isinstance(draft, SoftPrompt)
    samples = _samples(prepared, draft, on_event)
    measured = measured_result(prepared, draft, judging, on_event)
    prompt = draft.with_metadata(
        samples=tuple(samples) if job.samples else (),
        heldout=summary(measured, label_of(draft)) if measured is not None else {},
    )
    disclosure = tuple(file_disclosure(prompt))
    on_event(Disclosed(disclosure))
    if job.out.exists() and not job.overwrite:
        raise BadInput(
            "a file of this name appeared while training", where=job.out,
            do=f"move it away, then sordino train --resume {quote(str(job.together or job.folder))}; or add --overwrite to that",
        )  # fmt: skip
    for line in write(prompt, job.out, force=True):
        on_event(Warned(line))
    on_event(PromptWritten(job.out, prompt.n_tokens))
    nearest = nearest_words(prepared.base, prompt)
    report = RunReport(
        prompt,
        read_events(job.folder),
        nearest,
        inside=_inspected(prepared, prompt, judging, on_event),
        heldout=_conditions(measured, label_of(prompt)) if measured is not None else (),
        verdicts=_sentences(measured, label_of(prompt), judging) if measured is not None else (),
        samples=samples,
        disclosure=disclosure,
        notes=(prepared.splits.how, *prepared.notes, *prepared.splits.duplicates),
    )
    write_report(job.folder, report)
    on_event(ReportWritten(job.folder / HTML, tuple(words[0][0].strip() or "_" for words in nearest)))
    return TrainResult(prompt, measured, job.out, job.folder)


def label_of(prompt: SoftPrompt) -> str:
    return prompt.metadata.name or "soft prompt"


def measured_result(prepared: PreparedRun, prompt: SoftPrompt, judging: Judging, on_event: OnEvent) -> Report | None:
    """The held-out numbers. None, with a warning, where they cannot be had."""
    heldout = prepared.splits.heldout
    if not heldout:
        return None
    what = "Measuring on the held-out texts"
    on_event(Working(what))
    try:
        measured = evaluate(
            prepared.base,
            {label_of(prompt): prompt},
            heldout,
            judging.config,
            baselines=Baselines(judging.instructions, prepared.splits.train),
            off_domain=packaged_text([prompt], heldout) if judging.off_domain else None,
            progress=lambda done, total: on_event(Working(what, done, total)),
        )
    except KeyboardInterrupt:
        on_event(Warned("the measuring was interrupted: the file is written without held-out results"))
        return None
    except SordinoError as error:
        on_event(Warned(f"there are no held-out results: {error.message}"))
        return None
    on_event(Evaluated(measured, judging.config.row_tokens))
    return measured


def sample_pairs(
    base: BaseModel, prompt: SinglePrompt, texts: Sequence[str], *, seed: int, tokens: int
) -> list[dict[str, str]]:
    """Each text continued with the soft prompt and without, from one seed: {"prompt", "with", "without"} objects."""
    # A model without BOS has nothing to begin an empty text from.
    alone = [text for text in texts if text or base.bos_ids]
    requests = [TextRequest(text, prompt, seed) for text in texts] + [TextRequest(text, None, seed) for text in alone]
    continued = complete(base, requests, Sampling(max_tokens=tokens))
    without = dict(zip(alone, continued[len(texts) :], strict=True))
    return [
        {"prompt": text, "with": own, "without": without.get(text, "")}
        for text, own in zip(texts, continued[: len(texts)], strict=True)
    ]


def _samples(prepared: PreparedRun, draft: SoftPrompt, on_event: OnEvent) -> Sequence[Mapping[str, str]]:
    config = prepared.config
    on_event(Working("Writing samples"))
    try:
        return sample_pairs(prepared.base, draft, [config.sample_text], seed=config.seed, tokens=config.sample_tokens)
    except SordinoError as error:
        on_event(Warned(f"there are no samples: {error.message}"))
        return []


def _sentences(measured: Report, label: str, judging: Judging) -> list[str]:
    sentences = [verdict(measured, label), damage(measured, label)]
    sentences += explanation(measured.heldout, label, judging.config.row_tokens)
    sentences += [f"Note: {note}." for note in measured.notes]
    return [sentence for sentence in sentences if sentence]


def _inspected(
    prepared: PreparedRun, prompt: SoftPrompt, judging: Judging, on_event: OnEvent
) -> InspectionTable | None:
    """A short inspection, on the held-out texts. None, with a warning, where it cannot be had."""
    texts, targets = (
        prepared.splits.heldout or prepared.splits.validation,
        affordable(prompt.n_tokens, INSPECTION_BUDGET),
    )
    on_event(Working("Looking inside"))
    try:
        config = judging.config
        depth = depth_of(
            prepared.base,
            prompt,
            ("the held-out texts" if prepared.splits.heldout else "the validation texts", texts),
            InspectConfig(limit=min(config.limit, targets), row_tokens=config.row_tokens, pass_tokens=config.pass_tokens),
        ) if texts and targets else None  # fmt: skip
        inspection = Inspection(label_of(prompt), prompt, surface_of(prepared.base, prompt), depth)
        return inside_of(inspection, () if targets else (_TOO_LONG,))
    except KeyboardInterrupt:
        on_event(Warned("looking inside was interrupted: the report is written without it"))
    except SordinoError as error:
        on_event(Warned(f"the report has no look inside: {error.message}"))
    return None


def inside_of(inspection: Inspection, instead: Sequence[str] = ()) -> InspectionTable:
    """An inspection, as the report takes it. instead: the sentences where nothing was measured."""
    from sordino.evaluation.analysis.pictures import inside_figure
    from sordino.evaluation.pictures import rendered

    surface, depth = inspection.surface, inspection.depth
    columns = ["norm", "percentile of words"]
    cells = [
        [f"{norm:.2f}", f"{place:.0f}"] for norm, place in zip(surface.norms_P, surface.percentiles_P, strict=True)
    ]
    if depth is not None:
        columns += ["loss if left out", "attention"]
        for row, cost, share in zip(cells, depth.importance.costs, depth.attention.by_token_P, strict=True):
            row += [f"{cost:+.4f}", f"{share:.1%}"]
    return InspectionTable(rendered(inside_figure([inspection])), findings(depth) if depth else instead, columns, cells)


def _conditions(measured: Report, label: str) -> list[HeldoutLine]:
    found = []
    for line in measured.heldout.lines:
        less = line.differences.get(label)
        found.append(
            HeldoutLine(
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
