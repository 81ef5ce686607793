"""evaluate: what a soft prompt does for texts that it was not trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sordino.cli.console import err, one_line, out, table, warn
from sordino.cli.ensemble import with_components
from sordino.cli.loading import check_fits, loaded_model, loaded_voices
from sordino.cli.options import base_model_options, refuse_alone, seed_option
from sordino.errors import BadInput
from sordino.prompts.mixture import components_of

if TYPE_CHECKING:
    from sordino.evaluation.report import Estimate, Measurement, Report
    from sordino.evaluation.scoring import Progress
    from sordino.library.library import Library
    from sordino.prompts.mixture import Prompt
    from sordino.texts.pieces import Piece

_PATHS = click.Path(path_type=Path)
_LABEL = 60


@click.command()
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option(
    "--heldout",
    multiple=True,
    required=True,
    type=_PATHS,
    metavar="PATH",
    help="Texts that were not trained on; may be repeated.",
)
@click.option(
    "--excerpts",
    multiple=True,
    type=_PATHS,
    metavar="PATH",
    help="The training texts, to compare with real excerpts of them.",
)
@click.option(
    "--instruction",
    "instructions",
    multiple=True,
    metavar="TEXT",
    help="An instruction to compare with; may be repeated.  [default: made from the name and the description]",
)
@click.option(
    "--off-domain",
    multiple=True,
    type=_PATHS,
    metavar="PATH",
    help="Texts in another voice, to see the damage.  [default: a packaged one]",
)
@click.option(
    "--speaker", metavar="NAME", help="In chat logs: whose turns are measured.  [default: everybody but the user]"
)
@click.option(
    "--limit",
    type=int,
    default=8192,
    show_default=True,
    metavar="N",
    help="Most tokens measured of a text, spread evenly; 0 for all.",
)
@click.option(
    "--row-tokens",
    type=int,
    default=128,
    show_default=True,
    metavar="N",
    help="Length of the windows that texts are cut into.",
)
@click.option(
    "--excerpt-draws", type=int, default=3, show_default=True, metavar="N", help="Excerpts of each length, averaged."
)
@click.option(
    "--pass-tokens",
    type=int,
    default=4096,
    show_default=True,
    metavar="N",
    help="Most positions in one forward pass; lower it if memory runs out. The result is the same.",
)
@click.option("--components", is_flag=True, help="Measure each component of a mixture too.")
@click.option("--force", is_flag=True, help="Measure a soft prompt that was made for another model of the same width.")
@seed_option()
@base_model_options
def evaluate(
    prompts: tuple[str, ...],
    heldout: tuple[Path, ...],
    excerpts: tuple[Path, ...],
    instructions: tuple[str, ...],
    off_domain: tuple[Path, ...],
    speaker: str | None,
    limit: int,
    row_tokens: int,
    excerpt_draws: int,
    pass_tokens: int,
    components: bool,
    force: bool,
    seed: int,
    model: str,
    device: str | None,
    dtype: str | None,
    library: Library,
    as_json: bool,
) -> None:
    """Measure soft prompts on held-out texts: do they help, and how much real text are they worth?

    The same tokens are predicted behind each soft prompt, behind nothing, behind instructions, and behind excerpts of the
    training texts. A text in another voice shows what the voice costs elsewhere.
    """
    if any(not text.strip() for text in instructions):
        raise BadInput("an instruction is empty", where="--instruction")
    if not excerpts:
        refuse_alone("--excerpt-draws", needs="--excerpts")
    loaded = loaded_voices(library, prompts)
    if components:
        loaded = with_components(loaded)
    held, training, other = _texts(loaded, heldout, excerpts, off_domain, speaker)
    base = loaded_model(model, dtype, device)
    for label, prompt in loaded.items():
        check_fits(base, label, prompt, force=force)
    from sordino.evaluation.measuring import EvaluateConfig
    from sordino.evaluation.measuring import evaluate as measure
    from sordino.evaluation.report import to_json

    config = EvaluateConfig(
        row_tokens=row_tokens, excerpts=excerpt_draws, limit=limit, pass_tokens=pass_tokens, seed=seed
    )
    with measuring_bar() as progress:
        report = measure(
            base,
            loaded,
            held,
            config,
            instructions=instructions,
            training=training,
            off_domain=other,
            progress=progress,
        )
    if as_json:
        click.echo(
            json.dumps(
                {"model": base.name, "row_tokens": row_tokens, "seed": seed, **to_json(report)},
                ensure_ascii=False,
                indent=2,
            )
        )
    else:
        show_report(report, row_tokens)


def show_report(report: Report, row_tokens: int) -> None:
    """The table, what its columns mean, and a verdict for each soft prompt."""
    from sordino.evaluation.report import damage, explanation, verdict

    first = next(iter(report.n_tokens))
    out.print(_table(report.heldout, first))
    for line in explanation(report.heldout, first, row_tokens):
        out.print(one_line(line))
    out.print()
    for label in report.n_tokens:
        named = f"{one_line(label)}: " if len(report.n_tokens) > 1 else ""
        out.print(named + verdict(report, label), style="bold")
        if lost := damage(report, label):
            out.print(named + lost)
    for note in report.notes:
        out.print(f"Note: {one_line(note)}.")


def _table(measured: Measurement, first: str) -> object:
    shown = table("in front of the text", "#tokens", "#loss", "", "#bits per byte", "#over soft prompt", "")
    for line in measured.lines:
        less = line.differences.get(first)
        shown.add_row(
            _heading(line.kind, line.label),
            str(line.tokens),
            f"{line.nll.value:.3f}",
            _brackets(line.nll, "{:.3f}"),
            f"{line.bits_per_byte:.3f}",
            f"{less.value:+.3f}" if less else "",
            _brackets(less, "{:+.3f}") if less else "",
        )
    return shown


def _heading(kind: str, label: str) -> str:
    label = one_line(label)
    label = label if len(label) <= _LABEL else label[: _LABEL - 3] + "..."
    return f'"{label}"' if kind == "instruction" else f"soft prompt {label}" if kind == "soft prompt" else label


def _brackets(estimate: Estimate, form: str) -> str:
    if estimate.interval is None:
        return ""
    low, high = map(form.format, estimate.interval)
    return f"[{low}, {high}]"


def _texts(
    prompts: dict[str, Prompt],
    heldout: Sequence[Path],
    excerpts: Sequence[Path],
    off_domain: Sequence[Path],
    speaker: str | None,
) -> tuple[Sequence[Piece], Sequence[Piece], tuple[str, Sequence[Piece]] | None]:
    """Held-out, training and off-domain texts, with warnings about what would make the result worthless."""
    from sordino.evaluation.off_domain import packaged_text
    from sordino.texts.overlap import overlap_lines
    from sordino.texts.reading import read_pieces

    held = read_pieces(list(heldout), speaker=speaker)
    training = read_pieces(list(excerpts), speaker=speaker) if excerpts else None
    other = (", ".join(path.name for path in off_domain), read_pieces(list(off_domain)).pieces) if off_domain else None
    alone = [one for prompt in prompts.values() for one in components_of(prompt) if one is not None]
    for note in (*held.notes, *(training.notes if training else ())):
        err.print(one_line(note))
    if training is not None:
        for line in overlap_lines(training.pieces, (), held.pieces):
            warn(line)
    return held.pieces, training.pieces if training else (), other or packaged_text(alone, held.pieces)


@contextmanager
def measuring_bar() -> Iterator[Progress]:
    """A bar on stderr for a measurement that says how far it is."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("Measuring"), BarColumn(30), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=err, transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
