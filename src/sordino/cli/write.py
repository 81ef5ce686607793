"""generate and compare: continue texts, with and without soft prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.batches import BatchLine, read_batch, read_text
from sordino.cli.console import err, one_line, out, printable
from sordino.cli.ensemble import mixture_options, reweighted
from sordino.cli.loading import check_fits, loaded_model, loaded_voices
from sordino.cli.options import base_model_options, refuse_alone, seed_option
from sordino.cli.sampling import sampling_of, sampling_options
from sordino.errors import ConfigError

if TYPE_CHECKING:
    from sordino.engine.generate import TextRequest
    from sordino.engine.sampling import Sampling
    from sordino.library.library import Library
    from sordino.models.base_model import BaseModel
    from sordino.prompts.mixture import Prompt

# Narrower columns break a sentence into a ladder of words.
MIN_COLUMN = 36
WITHOUT = "no soft prompt"


@click.command()
@click.argument("text", required=False)
@click.option("--soft-prompt", "-p", metavar="NAME_OR_PATH", help="A soft prompt or mixture of the library, or a file.")
@click.option(
    "--batch",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Continue every line of FILE, and print JSON lines. A line is a text, or a JSON object with text and, if wanted, "
    "soft_prompt and seed.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Texts at a time with --batch.",
)
@sampling_options
@mixture_options
@seed_option()
@base_model_options
def generate(
    text: str | None,
    soft_prompt: str | None,
    batch: Path | None,
    batch_size: int,
    seed: int,
    model: str,
    device: str | None,
    dtype: str | None,
    library: Library,
    as_json: bool,
    force: bool,
    weights: str | None,
    token_mixture: bool,
    **given: Any,
) -> None:
    """Continue TEXT, with or without a soft prompt. "-" reads TEXT from standard input.

    Without TEXT the soft prompt begins by itself. Only the continuation is printed, as it comes.
    """
    if batch is None:
        refuse_alone("--batch-size", needs="--batch")
        lines = [BatchLine(_text_of(text), soft_prompt or "", seed, "TEXT")]
    elif text is not None:
        raise ConfigError("both TEXT and --batch were given", do="give one of them")
    else:
        lines = read_batch(batch)
    from sordino.engine.generate import generate

    sampling = sampling_of(given)
    prompts = reweighted(_prompts(lines, soft_prompt or "", library), weights, token_mixture=token_mixture)
    base, requests = _requests(lines, soft_prompt or "", prompts, seed, sampling, (model, dtype, device), force=force)
    if batch is not None:
        _print_batch(base, lines, requests, sampling, batch_size, soft_prompt or "")
    elif as_json:
        _print_json(base, lines[0], requests[0], sampling)
    else:
        if out.is_terminal and text != "-":
            out.print(printable(lines[0].text), end="", style="dim")
        for piece in generate(base, requests, sampling):
            click.echo(printable(piece.text) if out.is_terminal else piece.text, nl=False)
        click.echo()


@click.command()
@click.argument("text")
@click.option(
    "--soft-prompt",
    "-p",
    "names",
    multiple=True,
    required=True,
    metavar="NAME_OR_PATH",
    help="A soft prompt or mixture; may be repeated.",
)
@sampling_options
@mixture_options
@seed_option()
@base_model_options
def compare(
    text: str,
    names: tuple[str, ...],
    seed: int,
    model: str,
    device: str | None,
    dtype: str | None,
    library: Library,
    as_json: bool,
    force: bool,
    weights: str | None,
    token_mixture: bool,
    **given: Any,
) -> None:
    """Continue TEXT without and with each soft prompt, from the same seed, side by side. "-" reads standard input."""
    text, sampling = _text_of(text), sampling_of(given)
    prompts = reweighted(loaded_voices(library, names), weights, token_mixture=token_mixture)
    from sordino.engine.generate import TextRequest, check_request, complete

    base = loaded_model(model, dtype, device)
    requests = [TextRequest(text, None, seed)]
    for label, prompt in prompts.items():
        check_fits(base, label, prompt, force=force)
        requests.append(TextRequest(text, prompt, seed))
    for request in requests:
        check_request(base, request, sampling)
    with err.status("Writing ..."):
        texts = complete(base, requests, sampling)
    if as_json:
        results = [
            {"soft_prompt": label, "continuation": said} for label, said in zip([None, *prompts], texts, strict=True)
        ]
        click.echo(
            json.dumps(
                {"text": text, "seed": seed, "model": base.name, "results": results}, ensure_ascii=False, indent=2
            )
        )
    else:
        show_side_by_side(text, [WITHOUT, *prompts], texts)


def show_side_by_side(text: str, headings: Sequence[str], texts: Sequence[str]) -> None:
    """Columns where the terminal has room for them, else one after another."""
    out.print(printable(text), style="dim")
    if out.is_terminal and has_room(out.width, len(headings)):
        _print_columns(headings, texts)
        return
    for heading, said in zip(headings, texts, strict=True):
        out.print(f"\n{one_line(heading)}", style="bold")
        out.print(printable(said.strip("\n")))


def has_room(width: int, columns: int) -> bool:
    return width // columns >= MIN_COLUMN


def _print_columns(headings: Sequence[str], texts: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for heading in headings:
        # Equal columns: the eye compares line with line.
        shown.add_column(one_line(heading), ratio=1, overflow="fold")
    shown.add_row(*(printable(said.strip("\n")) for said in texts))
    out.print(shown)


def _text_of(text: str | None) -> str:
    """TEXT, or standard input without its last line end."""
    if text == "-":
        return read_text("-").replace("\r\n", "\n").removesuffix("\n")
    return text or ""


def _prompts(lines: Sequence[BatchLine], default: str, library: Library) -> dict[str, Prompt]:
    """What the lines name, by those names."""
    names = list(dict.fromkeys(name for line in lines if (name := _name_of(line, default))))
    return dict(zip(names, loaded_voices(library, names).values(), strict=True))


def _requests(
    lines: Sequence[BatchLine],
    soft_prompt: str,
    prompts: dict[str, Prompt],
    seed: int,
    sampling: Sampling,
    model: tuple[str, str | None, str | None],
    *,
    force: bool,
) -> tuple[BaseModel, list[TextRequest]]:
    """All that is asked for, checked before the first token is drawn: a batch fails whole or not at all."""
    from sordino.engine.generate import TextRequest, check_request

    base = loaded_model(*model)
    for name, prompt in prompts.items():
        check_fits(base, name, prompt, force=force)
    requests = []
    for line in lines:
        name = _name_of(line, soft_prompt)
        request = TextRequest(line.text, prompts[name] if name else None, seed if line.seed is None else line.seed)
        try:
            check_request(base, request, sampling)
        except ConfigError as error:
            raise ConfigError(
                error.what, where=line.where, expected=error.expected, got=error.got, do=error.do
            ) from None
        requests.append(request)
    return base, requests


def _name_of(line: BatchLine, default: str) -> str:
    return default if line.soft_prompt is None else line.soft_prompt


def _print_batch(
    base: BaseModel,
    lines: Sequence[BatchLine],
    requests: Sequence[TextRequest],
    sampling: Sampling,
    size: int,
    default: str,
) -> None:
    for start in range(0, len(lines), size):
        part = slice(start, start + size)
        for line, answer in zip(lines[part], _answers(base, requests[part], sampling), strict=True):
            click.echo(json.dumps(_answer_json(line, default, answer), ensure_ascii=False))


def _print_json(base: BaseModel, line: BatchLine, request: TextRequest, sampling: Sampling) -> None:
    (answer,) = _answers(base, [request], sampling)
    click.echo(json.dumps({**_answer_json(line, "", answer), "model": base.name}, ensure_ascii=False, indent=2))


def _answers(base: BaseModel, requests: Sequence[TextRequest], sampling: Sampling) -> list[dict[str, Any]]:
    from sordino.engine.generate import generate

    answers: list[dict[str, Any]] = [{"continuation": "", "seed": request.seed, "finish": ""} for request in requests]
    for piece in generate(base, requests, sampling):
        answers[piece.request]["continuation"] += piece.text
        answers[piece.request]["finish"] = piece.finish or ""
    return answers


def _answer_json(line: BatchLine, default: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {"text": line.text, "soft_prompt": _name_of(line, default) or None, **answer}
