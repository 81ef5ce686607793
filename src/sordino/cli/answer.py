"""answers: what soft prompts do for a task, counted in right answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import err, one_line, out, table, warn
from sordino.cli.evaluate import measuring_bar
from sordino.cli.loading import check_fits, loaded_model, loaded_voices
from sordino.cli.options import base_model_options, refuse_alone, seed_option
from sordino.errors import BadInput, ConfigError
from sordino.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from sordino.evaluation.answers import TaskReport
    from sordino.evaluation.confidence import Estimate
    from sordino.evaluation.free_answers import FreeReport
    from sordino.library.library import Library
    from sordino.texts.pieces import Piece

_PATHS = click.Path(path_type=Path)
_LABEL = 48
# A confusion table of more labels than this is for the JSON's readers.
_CONFUSION = 8


@click.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "--heldout",
    multiple=True,
    required=True,
    type=_PATHS,
    metavar="PATH",
    help="Rows that were not trained on: JSONL or CSV with prompt and completion. Repeated, each is measured by itself.",
)
@click.option(
    "--examples",
    multiple=True,
    type=_PATHS,
    metavar="PATH",
    help="Training rows: examples are drawn from them, and how often each label occurs.",
)
@click.option("--labels", metavar="A,B,...", help="The answers there are.  [default: what the completions take]")
@click.option(
    "--instruction",
    "instructions",
    multiple=True,
    metavar="TEXT",
    help="An instruction to compare with; may be repeated.  [default: one that names the labels]",
)
@click.option(
    "--shots",
    multiple=True,
    type=int,
    metavar="N",
    help="Compare with instructions that N examples stand behind, too; may be repeated.",
)
@click.option("--free", is_flag=True, help="Answers in free words: they are written, and held against the right ones.")
@click.option(
    "--max-tokens", type=int, default=24, show_default=True, metavar="N", help="Longest answer that is written."
)
@click.option(
    "--row-tokens",
    type=int,
    default=256,
    show_default=True,
    metavar="N",
    help="Longest prompt; of a longer one its beginning is left out.",
)
@click.option(
    "--pass-tokens",
    type=int,
    default=4096,
    show_default=True,
    metavar="N",
    help="Most positions in one forward pass; lower it if memory runs out. The result is the same.",
)
@click.option("--force", is_flag=True, help="Measure a soft prompt that was made for another model of the same width.")
@seed_option()
@base_model_options
def answers(
    prompts: tuple[str, ...],
    heldout: tuple[Path, ...],
    examples: tuple[Path, ...],
    labels: str | None,
    instructions: tuple[str, ...],
    shots: tuple[int, ...],
    free: bool,
    max_tokens: int,
    row_tokens: int,
    pass_tokens: int,
    force: bool,
    seed: int,
    model: str,
    device: str | None,
    dtype: str | None,
    library: Library,
    as_json: bool,
) -> None:
    """Measure soft prompts on a task: how many answers are right, and how sure it is of them?

    The same rows are answered behind each soft prompt, behind nothing, behind instructions, and behind instructions with examples.
    The likeliest of a closed set of labels is the answer; with --free, what the model writes. Several soft prompts are measured
    as ensembles, too. A mixture (.mix.zip) answers by its own weights and rule.
    """
    if any(not text.strip() for text in instructions):
        raise BadInput("an instruction is empty", where="--instruction")
    if free and labels is not None:
        raise ConfigError("free answers have no labels", where="--labels", do="leave out --labels or --free")
    if not free:
        refuse_alone("--max-tokens", needs="--free")
    if shots and not examples:
        raise ConfigError("there are no rows to show as examples", where="--shots", do="give --examples too")
    loaded = loaded_voices(library, prompts)
    alone = {label: prompt for label, prompt in loaded.items() if isinstance(prompt, SoftPrompt)}
    if free and len(alone) < len(loaded):
        raise ConfigError(
            "free answers of mixtures are not measured", where="--free", do="give soft prompts, or labels"
        )
    held, shown = _rows(heldout, examples)
    base = loaded_model(model, dtype, device)
    for label, prompt in loaded.items():
        check_fits(base, label, prompt, force=force)
    from sordino.evaluation.answers import classify
    from sordino.evaluation.conditions import Baselines
    from sordino.evaluation.config import TaskConfig
    from sordino.evaluation.free_answers import answer_freely

    config = TaskConfig(row_tokens=row_tokens, shots=shots, pass_tokens=pass_tokens, seed=seed)
    more: dict[str, Any] = {"baselines": Baselines(instructions, shown)}
    report: TaskReport | FreeReport
    with measuring_bar() as progress:
        if free:
            report = answer_freely(base, alone, held, config, max_tokens=max_tokens, progress=progress, **more)
        else:
            named = labels.split(",") if labels is not None else ()
            report = classify(base, loaded, held, config, labels=named, progress=progress, **more)
    if as_json:
        said = {"model": base.name, "row_tokens": row_tokens, "seed": seed, **report.to_json()}
        click.echo(json.dumps(said, ensure_ascii=False, indent=2))
    else:
        _show(report, next(iter(loaded)))


def _rows(heldout: Sequence[Path], examples: Sequence[Path]) -> tuple[dict[str, Sequence[Piece]], Sequence[Piece]]:
    """Held-out sets by name, and training rows, with warnings about rows that are on both sides."""
    from sordino.texts.overlap import overlap_lines
    from sordino.texts.reading import read_pieces

    names = [one_line(path.name) for path in heldout]
    unique = len(set(names)) == len(names)
    held: dict[str, Sequence[Piece]] = {}
    notes: list[str] = []
    training = read_pieces(list(examples)) if examples else None
    for name, path in zip(names, heldout, strict=True):
        label = name if unique else one_line(str(path))
        if label in held:
            raise ConfigError("a held-out set was given twice", where="--heldout", got=label)
        reading = read_pieces([path])
        held[label] = reading.pieces
        notes += reading.notes
        for line in overlap_lines(training.pieces, (), reading.pieces) if training else ():
            warn(line)
    for note in (*notes, *(training.notes if training else ())):
        err.print(one_line(note))
    return held, training.pieces if training else ()


def _show(report: TaskReport | FreeReport, first: str) -> None:
    from sordino.evaluation.answers import TaskReport
    from sordino.evaluation.confidence import MIN_UNITS

    out.print(_table(report, first))
    sets = [f"{held.name} ({held.rows:,} rows)" for held in report.sets]
    out.print(f"Measured on {', '.join(sets)}; every line of a set answers the same rows.")
    if isinstance(report, TaskReport):
        out.print(f"The answer is the likeliest of {', '.join(map(one_line, report.labels))}.")
        out.print(
            "Calibration error: how far off the model's own certainty is, over 10 bins; NLL: of the right label, nats."
        )
        over = "accuracy"
    else:
        out.print("Case, punctuation and articles do not count. NLL: of the right answer and its end, nats a token.")
        over = "F1"
    out.print(f"Soft prompt over: the {over} behind {one_line(first)} less that of this line, in points of 100.")
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


def _table(report: TaskReport | FreeReport, first: str) -> object:
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
                *([held.name] if several else []),
                _heading(line.kind, line.label),
                str(line.tokens),
                *_cells(line),
                f"{100 * less.value:+.1f}" if less else "",
                _brackets(less, "{:+.1f}") if less else "",
            )
    return shown


def _cells(line: Any) -> list[str]:
    from sordino.evaluation.classification import TaskLine

    if isinstance(line, TaskLine):
        return [
            f"{100 * line.accuracy.value:.1f} %",
            _brackets(line.accuracy, "{:.1f}"),
            f"{line.macro_f1.value:.3f}",
            f"{line.calibration_error.value:.3f}",
            f"{line.nll.value:.3f}",
        ]
    return [
        f"{100 * line.exact_match.value:.1f} %",
        _brackets(line.exact_match, "{:.1f}"),
        f"{100 * line.f1.value:.1f} %",
        f"{line.nll.value:.3f}",
    ]


def _show_confusion(report: TaskReport, first: str) -> None:
    if len(report.labels) > _CONFUSION:
        return
    for held in report.sets:
        shown = table("right label", *(f"#said {one_line(label)}" for label in report.labels))
        for label, counts in zip(report.labels, held.own(first).confusion, strict=True):
            shown.add_row(one_line(label), *map(str, counts))
        out.print(f"Behind {one_line(first)}, {held.name}:")
        out.print(shown)


def _heading(kind: str, label: str) -> str:
    label = one_line(label)
    label = label if len(label) <= _LABEL else label[: _LABEL // 2] + "..." + label[-(_LABEL // 2 - 3) :]
    if kind in ("instruction", "examples"):
        return f'"{label}"'
    if kind == "mean member":
        return f"mean of {label}"
    return f"{kind} {label}" if kind in ("soft prompt", "mixture", "best member", "ensemble") else label


def _brackets(estimate: Estimate, form: str) -> str:
    if estimate.interval is None:
        return ""
    low, high = (form.format(100 * end) for end in estimate.interval)
    return f"[{low}, {high}]"
