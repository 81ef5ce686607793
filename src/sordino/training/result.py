"""What a run leaves: its soft prompt's file, the held-out numbers and samples in it, and a report.

The file is written first, and again with what the measuring found. What goes wrong with numbers, samples or inspection is a
warning: the soft prompt is worth keeping without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from sordino.engine.generate import TextRequest, complete
from sordino.engine.sampling import Sampling
from sordino.errors import BadInput, SordinoError
from sordino.evaluation.analysis.inspection import Inspection, affordable, depth_of, findings, surface_of
from sordino.evaluation.conditions import Baselines, default_instructions
from sordino.evaluation.config import InspectConfig
from sordino.evaluation.measuring import evaluate
from sordino.evaluation.off_domain import packaged_text
from sordino.evaluation.report import Report, summary
from sordino.evaluation.verdict import damage, explanation, verdict
from sordino.formats import file_disclosure, read_single, write
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.nearest import nearest_words
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.training.events import (
    HTML,
    Disclosed,
    Evaluated,
    Finished,
    OnEvent,
    PromptWritten,
    ReportWritten,
    Warned,
    nobody,
)
from sordino.training.job import Job
from sordino.training.judging import Judging, MeasuringBar, positions
from sordino.training.report import InspectionTable, RunReport, read_events, write_report
from sordino.training.run import PreparedRun, finish

_TOO_LONG = "What each virtual token does for the loss was not measured: `sordino inspect` does it."


@dataclass(frozen=True)
class TrainResult:
    """prompt: with its metadata, as in `file`. report: the held-out results, None where there are none. folder: the run's, with
    report.html.
    """

    prompt: SinglePrompt
    report: Report | None
    file: Path
    folder: Path


@dataclass
class _Findings:
    """What measuring has found so far. Parts that were left out, failed or were interrupted are None or empty."""

    samples: Sequence[Mapping[str, str]] = ()
    report: Report | None = None
    inside: InspectionTable | None = None


def write_result(
    job: Job, prepared: PreparedRun, finished: Finished, judging: Judging, on_event: OnEvent
) -> TrainResult:
    """Write the soft prompt's file, measure, write it again with what was found, and the report.

    Whatever interrupts the measuring, the file is there. Raises BadInput, StorageError.
    """
    draft = finish(prepared, finished, job.metadata)
    if job.out.exists() and not job.overwrite and not is_file_of(job.out, draft):
        raise BadInput(
            "a file of this name appeared while training", where=job.out,
            do=f"move it away, then sordino train --resume {quote(str(job.together or job.folder))}; or add --overwrite to that",
        )  # fmt: skip
    write(draft, job.out, force=True)
    found = _measured(prepared, draft, judging, on_event)
    measured, label = found.report, label_of(draft)
    prompt = draft.with_metadata(
        samples=tuple(found.samples) if job.samples else (),
        heldout=summary(measured, label) if measured else {},
    )
    warnings = write(prompt, job.out, force=True)
    disclosure = tuple(file_disclosure(prompt))
    on_event(Disclosed(disclosure))
    for line in warnings:
        on_event(Warned(line))
    on_event(PromptWritten(job.out, prompt.n_tokens))
    # Keys and values are near no word.
    nearest = nearest_words(prepared.base, prompt) if isinstance(prompt, SoftPrompt) else []
    report = RunReport(
        prompt,
        read_events(job.folder),
        nearest,
        inside=found.inside,
        heldout=measured.heldout.lines if measured else (),
        distance=measured.distance if measured else None,
        verdicts=_sentences(measured, label, judging) if measured else (),
        samples=found.samples,
        disclosure=disclosure,
        notes=(prepared.splits.how, *prepared.notes, *prepared.splits.duplicates),
    )
    write_report(job.folder, report)
    on_event(ReportWritten(job.folder / HTML, tuple(words[0][0].strip() or "_" for words in nearest)))
    return TrainResult(prompt, measured, job.out, job.folder)


def take_part(job: Job, prepared: PreparedRun, finished: Finished, judging: Judging) -> None:
    """Run what `write_result` measures in another process, where each pass through the base model needs all. Writes nothing."""
    _measured(prepared, finish(prepared, finished, job.metadata), judging, nobody)


def is_file_of(path: Path, prompt: Prompt) -> bool:
    """Whether a file holds this soft prompt: it is the run's own, and the run was interrupted after it wrote it."""
    try:
        return read_single(path).content_hash == prompt.content_hash
    except SordinoError:
        return False


def label_of(prompt: SinglePrompt) -> str:
    return prompt.metadata.name or "soft prompt"


def _measured(prepared: PreparedRun, prompt: SinglePrompt, judging: Judging, on_event: OnEvent) -> _Findings:
    """Part by part, with one bar for all. A part that fails is a warning; an interrupt ends the measuring, not the run."""
    found = _Findings()
    costs = positions(judging, prepared.config, prepared.size)
    bar = MeasuringBar(costs, on_event)
    missing = ""
    try:
        if "samples" in costs:
            missing = "samples"
            found.samples = _samples(prepared, prompt, bar, on_event)
        if "heldout" in costs:
            missing = "held-out results"
            progress = bar.progress("heldout", "off_domain", "distance")
            found.report = measured_result(prepared, prompt, judging, on_event, progress)
        if found.report is not None:
            on_event(Evaluated(found.report, judging.config.row_tokens))
        missing = "inspection"
        found.inside = _inspected(prepared, prompt, judging, bar, on_event)
    except KeyboardInterrupt:
        on_event(
            Warned(f"measuring was interrupted: the file and the report go without {missing} and what comes after")
        )
    return found


def measured_result(
    prepared: PreparedRun,
    prompt: SinglePrompt,
    judging: Judging,
    on_event: OnEvent,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report | None:
    """The held-out numbers. None, with a warning, where they cannot be had."""
    heldout = prepared.splits.heldout
    if not heldout:
        return None
    instructions = judging.instructions or default_instructions(prompt.metadata)[: judging.most_instructions]
    try:
        if judging.measure is not None:
            return judging.measure(prompt, label_of(prompt), judging, progress)
        return evaluate(
            prepared.base,
            {label_of(prompt): prompt},
            heldout,
            judging.config,
            baselines=Baselines(instructions, prepared.splits.train),
            off_domain=packaged_text([prompt], heldout) if "off_domain" in judging.parts else None,
            progress=progress,
        )
    except SordinoError as error:
        if judging.config.distance is None:
            on_event(Warned(f"there are no held-out results: {error.message}"))
            return None
        # The rest is worth having without it.
        on_event(Warned(f"it is not known what other text leaves of the gain: {error.message}"))
        near = replace(judging, config=replace(judging.config, distance=None))
        return measured_result(prepared, prompt, near, on_event, progress)


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


def _samples(
    prepared: PreparedRun, draft: SinglePrompt, bar: MeasuringBar, on_event: OnEvent
) -> Sequence[Mapping[str, str]]:
    config = prepared.config
    bar.progress("samples")
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
    prepared: PreparedRun, prompt: SinglePrompt, judging: Judging, bar: MeasuringBar, on_event: OnEvent
) -> InspectionTable | None:
    """A short inspection, on the held-out texts. None where the prompt has no vectors, or, with a warning, where it fails."""
    if not isinstance(prompt, SoftPrompt):
        return None
    texts = prepared.splits.heldout or prepared.splits.validation
    targets = affordable(prompt.n_tokens, judging.inspection) if "inspection" in judging.parts else 0
    try:
        config = judging.config
        depth = depth_of(
            prepared.base,
            prompt,
            ("the held-out texts" if prepared.splits.heldout else "the validation texts", texts),
            InspectConfig(limit=min(config.limit, targets), row_tokens=config.row_tokens, pass_tokens=config.pass_tokens),
            progress=bar.progress("inspection"),
        ) if texts and targets else None  # fmt: skip
        inspection = Inspection(label_of(prompt), prompt, surface_of(prepared.base, prompt), depth)
        return inside_of(inspection, () if targets else (_TOO_LONG,))
    except SordinoError as error:
        on_event(Warned(f"the report has no inspection: {error.message}"))
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
