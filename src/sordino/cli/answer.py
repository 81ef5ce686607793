"""answers: what soft prompts do for a task, counted in right answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import one_line, out, print_json, show_measured
from sordino.cli.loading import ModelChoice, PromptChoice, TextChoice, heldout_option, measured_options
from sordino.cli.options import instruction_option, option_group, paths_option, refuse_alone, setting_options
from sordino.cli.progress import measuring_bar
from sordino.errors import ConfigError
from sordino.evaluation.config import TaskConfig
from sordino.prompts.mixture import Mixture
from sordino.settings import setting

if TYPE_CHECKING:
    from sordino.evaluation.answers import TaskReport
    from sordino.evaluation.free_answers import FreeReport


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
        "--examples", "training", "Training rows: examples are drawn from them, and how often each label occurs."
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
            "mixtures are not measured by what they write", where="--free", do="give soft prompts, or labels"
        )
    held = rows.read(apart=True)
    from sordino.evaluation.tasks import check_task

    check_task(held.sets, held.training)
    base = prompts.load_model(model, loaded)
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
        print_json({"model": base.name, "row_tokens": config.row_tokens, "seed": config.seed, **asdict(report)})
    else:
        _show(report, next(iter(loaded)))


def _show(report: TaskReport | FreeReport, first: str) -> None:
    from sordino.evaluation.tables import confusion_tables, task_explanation, task_table

    show_measured(task_table(report, first))
    for line in task_explanation(report, first):
        out.print(one_line(line))
    for counts in confusion_tables(report, first):
        show_measured(counts)
    for note in report.notes:
        out.print(f"Note: {one_line(note)}.")
