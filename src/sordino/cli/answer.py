"""answers: what soft prompts do for a task, counted in right answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import brackets, heading, one_line, out, print_json, table
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options
from sordino.cli.options import instruction_option, option_group, paths_option, refuse_alone, setting_options
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError
from sordino.evaluation.config import TaskConfig
from sordino.prompts.mixture import Mixture
from sordino.settings import setting

if TYPE_CHECKING:
    from rich.table import Table

    from sordino.evaluation.answers import TaskReport
    from sordino.evaluation.free_answers import FreeReport

# A confusion table of more labels than this is for the JSON's readers.
_CONFUSION = 8


@dataclass(frozen=True)
class AnswerKind:
    """Answers from a closed set of labels (None: what the completions take), or free ones of at most max_tokens."""

    labels: str | None = setting(None, "The possible answers.", shown="those of the completions", unit="A,B,...")
    free: bool = setting(
        False, "Answers in free words: the model writes them, and they are compared with the right ones."
    )
    max_tokens: int = setting(24, "Longest free answer, in tokens.", unit="N")

    def __post_init__(self) -> None:
        if self.free and self.labels is not None:
            raise ConfigError("free answers have no labels", where="--labels", do="leave out --labels or --free")
        if not self.free:
            refuse_alone("--max-tokens", needs="--free")


@click.command()
@option_group(
    "rows",
    TextChoice,
    heldout_option(
        "Rows that were not trained on: JSONL or CSV with prompt and completion. May be repeated: each is measured separately.",
        required=True,
    ),
    paths_option(
        "--examples",
        "training",
        "Training rows: examples are drawn from them, and how often each label occurs.",
    ),
)
@setting_options(AnswerKind, given_as="answered")
@instruction_option("one that names the labels")
@setting_options(TaskConfig, "row_tokens", "pass_tokens", "seed", "shots", given_as="config")
@measured_options()
def answers(
    prompts: PromptChoice,
    rows: TextChoice,
    answered: AnswerKind,
    instructions: tuple[str, ...],
    config: TaskConfig,
    model: ModelChoice,
    as_json: bool,
) -> None:
    """Measure soft prompts on a task: how many answers are right, and how sure is the model?

    The same rows are answered after each soft prompt, without one, after instructions, and after instructions with examples.
    The likeliest of a closed set of labels is the answer; with --free, what the model writes. Several soft prompts are measured
    as ensembles, too. A mixture (.mix.zip) answers by its own weights and rule.
    """
    if config.shots and not rows.training:
        raise ConfigError("there are no rows to show as examples", where="--shots", do="give --examples too")
    loaded = prompts.load_any()
    alone = {label: prompt for label, prompt in loaded.items() if not isinstance(prompt, Mixture)}
    if answered.free and len(alone) < len(loaded):
        raise ConfigError(
            "free answers of mixtures are not measured", where="--free", do="give soft prompts, or labels"
        )
    held = rows.read(apart=True)
    base = model.load()
    prompts.check(base, loaded)
    from sordino.evaluation.answers import classify
    from sordino.evaluation.conditions import Baselines
    from sordino.evaluation.free_answers import answer_freely

    more: dict[str, Any] = {"baselines": Baselines(instructions, held.training)}
    report: TaskReport | FreeReport
    with measuring_bar() as progress:
        if answered.free:
            report = answer_freely(
                base, alone, held.sets, config, max_tokens=answered.max_tokens, progress=progress, **more
            )
        else:
            labels = answered.labels.split(",") if answered.labels is not None else ()
            report = classify(base, loaded, held.sets, config, labels=labels, progress=progress, **more)
    if as_json:
        print_json({"model": base.name, "row_tokens": config.row_tokens, "seed": config.seed, **report.to_json()})
    else:
        _show(report, next(iter(loaded)))


def _show(report: TaskReport | FreeReport, first: str) -> None:
    from sordino.evaluation.answers import TaskReport
    from sordino.evaluation.confidence import MIN_UNITS

    out.print(_table(report, first))
    sets = [f"{one_line(held.name)} ({held.rows:,} rows)" for held in report.sets]
    out.print(f"Measured on {', '.join(sets)}; every line of a set answers the same rows.")
    if isinstance(report, TaskReport):
        out.print(f"The answer is the likeliest of {', '.join(map(one_line, report.labels))}.")
        out.print(
            "Calibration error: how far the model's own certainty is off, over 10 bins; NLL: of the right label, nats."
        )
        over = "accuracy"
    else:
        out.print("Case, punctuation and articles do not count. NLL: of the right answer and its end, nats a token.")
        over = "F1"
    out.print(f"Soft prompt over: the {over} with {one_line(first)} minus that of this line, in percentage points.")
    if report.sets[0].rows < MIN_UNITS:
        out.print("There are too few rows for intervals.")
    else:
        out.print("In brackets: 95 % intervals, drawn by row; a difference whose interval leaves out 0 is not chance.")
    if any(line.kind == "best member" for line in report.sets[0].lines):
        out.print("The best member was chosen on these very rows, which flatters it.")
    if isinstance(report, TaskReport):
        _show_confusion(report, first)
    for note in report.notes:
        out.print(f"Note: {one_line(note)}.")


def _table(report: TaskReport | FreeReport, first: str) -> Table:
    from sordino.evaluation.answers import TaskReport

    several = len(report.sets) > 1
    own = (
        ("#accuracy", "", "#macro-F1", "#calibration error", "#NLL")
        if isinstance(report, TaskReport)
        else ("#exact match", "", "#F1", "#NLL")
    )
    shown = table(*(["held-out"] if several else []), "in front of the row", "#tokens", *own, "#soft prompt over", "")
    for held in report.sets:
        for line in held.lines:
            less = line.differences.get(first)
            shown.add_row(
                *([one_line(held.name)] if several else []),
                heading(line.kind, line.label),
                str(line.tokens),
                *_cells(line),
                f"{100 * less.value:+.1f}" if less else "",
                brackets(less.interval, "{:+.1f}", times=100) if less else "",
            )
    return shown


def _cells(line: Any) -> list[str]:
    from sordino.evaluation.classification import TaskLine

    if isinstance(line, TaskLine):
        return [
            f"{100 * line.accuracy.value:.1f} %",
            brackets(line.accuracy.interval, "{:.1f}", times=100),
            f"{line.macro_f1.value:.3f}",
            f"{line.calibration_error.value:.3f}",
            f"{line.nll.value:.3f}",
        ]
    return [
        f"{100 * line.exact_match.value:.1f} %",
        brackets(line.exact_match.interval, "{:.1f}", times=100),
        f"{100 * line.f1.value:.1f} %",
        f"{line.nll.value:.3f}",
    ]


def _show_confusion(report: TaskReport, first: str) -> None:
    if len(report.labels) > _CONFUSION:
        return
    for held in report.sets:
        shown = table("right label", *(f"#answered {one_line(label)}" for label in report.labels))
        for label, counts in zip(report.labels, held.own(first).confusion, strict=True):
            shown.add_row(one_line(label), *map(str, counts))
        out.print(f"With {one_line(first)}, on {one_line(held.name)}:")
        out.print(shown)
