"""prune: a soft prompt made shorter by what matters least."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import err, one_line, out, table, warn
from sordino.cli.evaluate import measuring_bar
from sordino.cli.loading import check_fits, loaded_model, loaded_prompts
from sordino.cli.looking import (
    PATHS,
    check_out,
    force_option,
    limit_option,
    overwrite_option,
    pass_tokens_option,
    picture_option,
    row_tokens_option,
    written,
)
from sordino.cli.options import base_model_options
from sordino.errors import ConfigError
from sordino.library.outputs import check_picture

if TYPE_CHECKING:
    from sordino.evaluation.analysis.pruning import Stage
    from sordino.library.library import Library
    from sordino.texts.pieces import Piece

_TOLERANCE = 0.01


@click.command()
@click.argument("name", metavar="PROMPT")
@click.option(
    "--data",
    multiple=True,
    required=True,
    type=PATHS,
    metavar="PATH",
    help="Texts to choose by, in the prompt's voice; may be repeated.",
)
@click.option(
    "--heldout",
    multiple=True,
    type=PATHS,
    metavar="PATH",
    help="Texts that choose no token, to judge lengths by; may be repeated.  [default: DATA, which flatters]",
)
@click.option("--tokens", type=int, metavar="N", help="Keep so many virtual tokens.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="NATS",
    help=f"Keep as few as the loss allows, if it may rise by so much.  [default: {_TOLERANCE}]",
)
@click.option(
    "--block", type=int, metavar="N", help="Drop so many between two looks.  [default: 1; of more than 24 tokens, more]"
)
@click.option("--out", "target", type=PATHS, metavar="FILE", help="The .zip to write; without it only the table.")
@picture_option("Loss against length as a picture, .png or .svg.  [default: beside OUT]")
@click.option("--speaker", metavar="NAME", help="In chat logs: whose turns are measured.")
@limit_option(1024, "Most tokens measured of DATA, and of the held-out texts, spread evenly; 0 for all.")
@row_tokens_option()
@pass_tokens_option()
@force_option()
@overwrite_option()
@base_model_options
def prune(
    name: str,
    data: tuple[Path, ...],
    heldout: tuple[Path, ...],
    tokens: int | None,
    tolerance: float | None,
    block: int | None,
    target: Path | None,
    picture: Path | None,
    speaker: str | None,
    limit: int,
    row_tokens: int,
    pass_tokens: int,
    force: bool,
    overwrite: bool,
    model: str,
    device: str | None,
    dtype: str | None,
    library: Library,
    as_json: bool,
) -> None:
    """Make a soft prompt shorter: drop the virtual tokens that matter least.

    Each is left out in turn, the one that is missed least goes, and again. What is measured is the shortened prompt itself. The
    file says what was dropped.
    """
    if tokens is not None and tolerance is not None:
        raise ConfigError("two ways to say how short", where="--tokens, --tolerance", do="give one of them")
    if tolerance is not None and math.isnan(tolerance):
        raise ConfigError("not a number of nats", where="--tolerance", expected="0 or more", got=tolerance)
    loaded = loaded_prompts(library, [name])
    ((label, prompt),) = loaded.items()
    if tokens is not None and not 1 <= tokens < prompt.n_tokens:
        raise ConfigError("no shorter length", where="--tokens", expected=f"1 to {prompt.n_tokens - 1}", got=tokens)
    if target is not None and picture is None:
        picture = target.with_suffix(".png")
    check_out(target, overwrite=overwrite)
    check_picture(picture, overwrite=overwrite)
    chooses, judges = _texts(data, heldout, speaker)
    base = loaded_model(model, dtype, device)
    check_fits(base, label, prompt, force=force)
    from sordino.evaluation.analysis.losses import passage_of
    from sordino.evaluation.analysis.pruning import default_block, pruned, stages_of, within

    passage = passage_of(base, chooses, row_tokens=row_tokens, limit=limit)
    other = passage_of(base, judges, row_tokens=row_tokens, limit=limit) if judges else None
    with measuring_bar() as progress:
        stages = stages_of(
            base,
            prompt,
            passage,
            other,
            down_to=tokens or 1,
            block=default_block(prompt.n_tokens) if block is None else block,
            pass_tokens=pass_tokens,
            progress=progress,
        )
    chosen = stages[-1] if tokens else within(stages, _TOLERANCE if tolerance is None else tolerance)
    measured = (other or passage).tokens
    said = _json(stages, chosen, passage.tokens, other.tokens if other else None)
    if not as_json:
        out.print(_table(stages, chosen))
        out.print(_verdict(stages, chosen, measured, heldout=other is not None))
    if picture is not None:
        from sordino.evaluation.analysis.pictures import pruning_figure, rendered
        from sordino.storage import write_bytes

        write_bytes(picture, rendered(pruning_figure(stages, chosen), picture.suffix))
        err.print(f"Picture: {picture}")
    if target is not None and len(chosen.kept) == prompt.n_tokens:
        warn("nothing can be dropped within the tolerance: no file was written")
    elif target is not None:
        short = pruned(prompt, stages, chosen, tokens=measured)
        written(short, target, overwrite=overwrite)
        said["out"] = {"path": str(target), "content_hash": short.content_hash, "n_tokens": short.n_tokens}
    if as_json:
        click.echo(json.dumps(said, ensure_ascii=False, indent=2))


def _texts(
    data: Sequence[Path], heldout: Sequence[Path], speaker: str | None
) -> tuple[Sequence[Piece], Sequence[Piece]]:
    from sordino.texts.overlap import overlap_lines
    from sordino.texts.reading import read_pieces

    chooses = read_pieces(list(data), speaker=speaker)
    judges = read_pieces(list(heldout), speaker=speaker) if heldout else None
    for note in (*chooses.notes, *(judges.notes if judges else ())):
        err.print(one_line(note))
    if judges is None:
        warn("the loss is measured on the texts that chose: --heldout gives one that is not flattered")
        return chooses.pieces, ()
    for line in overlap_lines(chooses.pieces, (), judges.pieces):
        warn(line)
    return chooses.pieces, judges.pieces


def _table(stages: Sequence[Stage], chosen: Stage) -> object:
    held = stages[0].heldout is not None
    shown = table("#tokens", "dropped", "#loss on DATA", *(["#held-out loss"] if held else []), "#change", "")
    for at, stage in enumerate(stages):
        gone = sorted(set(stages[at - 1].kept) - set(stage.kept)) if at else []
        shown.add_row(
            str(len(stage.kept)),
            ", ".join(str(position + 1) for position in gone),
            f"{stage.loss:.4f}",
            *([f"{stage.heldout:.4f}"] if held else []),
            f"{stage.judged - stages[0].judged:+.4f}" if at else "",
            "kept" if stage is chosen else "",
        )
    return shown


def _verdict(stages: Sequence[Stage], chosen: Stage, tokens: int, *, heldout: bool) -> str:
    text = "held-out text" if heldout else "the text that chose"
    return (
        f"{len(chosen.kept)} of {len(stages[0].kept)} virtual tokens: the loss on {tokens:,} tokens of {text} goes from "
        f"{stages[0].judged:.4f} to {chosen.judged:.4f} nats per token ({chosen.judged - stages[0].judged:+.4f})."
    )


def _json(stages: Sequence[Stage], chosen: Stage, tokens: int, held_tokens: int | None) -> dict[str, Any]:
    """Positions count from 1, as everywhere that people read them."""
    return {
        "measured_tokens": tokens,
        "heldout_tokens": held_tokens,
        "lengths": [
            {
                "tokens": len(stage.kept),
                "kept": [position + 1 for position in stage.kept],
                "loss": stage.loss,
                "heldout": stage.heldout,
                "chosen": stage is chosen,
            }
            for stage in stages
        ],
    }
