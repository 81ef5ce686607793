"""generate and compare: continue texts, with and without soft prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sordino.cli.console import err, one_line, out, print_json, printable
from sordino.cli.ensemble import WritingOptions, writing_options
from sordino.cli.loading import ModelChoice, PromptChoice, measured_options
from sordino.cli.options import PATH, Decorator, option_group, refuse_alone, setting_options, stacked
from sordino.engine.config import EngineOptions, Sampling
from sordino.errors import ConfigError
from sordino.models import files
from sordino.models.sizes import check_sizes
from sordino.prompts.mixture import StoredPrompt
from sordino.texts.batches import BatchLine, read_batch, read_text

if TYPE_CHECKING:
    from sordino.engine.generate import TextRequest
    from sordino.engine.runners.runner import Runner
    from sordino.models.base_model import BaseModel
    from sordino.models.description import DescribedModel

# Narrower columns break a sentence into a ladder of words.
MIN_COLUMN = 36
WITHOUT = "no soft prompt"

_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")


def _writing_options(help: str, *, several: bool) -> Decorator:
    """What `generate` and `compare` share: prompts, model, as_json, engine, sampling, how."""
    names = click.option(
        "--soft-prompt", "-p", "names", multiple=several, required=several, metavar="NAME_OR_PATH", help=help
    )
    runner = setting_options(EngineOptions, "runner", given_as="engine")
    sampling = setting_options(Sampling, *_SAMPLING, given_as="sampling")
    return stacked(measured_options(names), runner, sampling, writing_options)


@dataclass(frozen=True)
class TextsToContinue:
    """One text as typed, or a file of them that are continued `size` at a time."""

    text: str | None
    batch: Path | None
    batch_size: int

    def lines(self, seed: int) -> list[BatchLine]:
        """Raises BadInput, ConfigError."""
        if self.batch is None:
            refuse_alone("--batch-size", needs="--batch")
            return [BatchLine(_text_of(self.text), None, seed, "TEXT")]
        if self.text is not None:
            raise ConfigError("both TEXT and --batch were given", do="give one of them")
        return read_batch(self.batch)


def _described(
    model: ModelChoice,
    runner: str,
    prompts: PromptChoice,
    loaded: Mapping[str, StoredPrompt],
    given: Sequence[tuple[str, StoredPrompt | None]],
    at_once: int,
) -> tuple[DescribedModel, Path | None]:
    """The model, and its file where llama.cpp continues these texts, so many at once.

    Raises as `build.llama_cpp_file`, and DoesNotFit: for other sizes than the model's before it is loaded.
    """
    files.resolve(model.model)
    check_sizes(model.model, loaded.values())
    # PyTorch takes seconds to come.
    with err.status(f"Loading {one_line(model.model)} ..."):
        from sordino.engine.runners.build import only_torch_writes

    base, path = model.describe(runner, only_torch_writes(given, at_once))
    prompts.check(base, loaded)
    return base, path


@click.command()
@option_group(
    "texts",
    TextsToContinue,
    click.argument("text", required=False),
    click.option(
        "--batch",
        type=PATH,
        metavar="FILE",
        help="Continue every line of FILE, and print JSON lines. A line is a text, or a JSON object with text and, if "
        "wanted, soft_prompt and seed.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        metavar="N",
        help="Texts at a time with --batch.",
    ),
)
@_writing_options("A soft prompt or mixture of the library, or a file.", several=False)
def generate(
    texts: TextsToContinue,
    prompts: PromptChoice,
    sampling: Sampling,
    how: WritingOptions,
    model: ModelChoice,
    engine: EngineOptions,
    as_json: bool,
) -> None:
    """Continue TEXT, with or without a soft prompt. "-" reads TEXT from standard input.

    Without TEXT the soft prompt begins by itself. Only the continuation is printed, as it comes.
    """
    default = prompts.names[0] if prompts.names else ""
    lines = texts.lines(how.seed)
    names = [line.name(default) for line in lines]
    given = replace(prompts, names=tuple(dict.fromkeys(filter(None, names))))
    loaded = how.applied(dict(zip(given.names, given.load_any().values(), strict=True)))
    chosen = [loaded.get(name) for name in names]
    at_once = texts.batch_size if texts.batch is not None else 1
    each = [(line.text, prompt) for line, prompt in zip(lines, chosen, strict=True)]
    base, path = _described(model, engine.runner, given, loaded, each, at_once)
    requests = _requests(base, lines, chosen, how.seed, sampling)
    from sordino.engine.runners.build import writing

    with writing(base, path, requests, sampling, at_once) as on:
        if texts.batch is not None:
            for start in range(0, len(lines), at_once):
                part = slice(start, start + at_once)
                answers = _answers(on, requests[part], sampling)
                for line, name, answer in zip(lines[part], names[part], answers, strict=True):
                    print_json({"text": line.text, "soft_prompt": name or None, **answer}, indent=None)
        elif as_json:
            (answer,) = _answers(on, requests, sampling)
            print_json({"text": lines[0].text, "soft_prompt": names[0] or None, **answer, "model": base.name})
        else:
            _print_as_it_comes(on, requests[0], sampling, show_text=out.is_terminal and texts.text != "-")


def _print_as_it_comes(on: BaseModel | Runner, request: TextRequest, sampling: Sampling, *, show_text: bool) -> None:
    from sordino.engine.generate import generate

    if show_text:
        out.print(printable(str(request.text)), end="", style="dim")
    for piece in generate(on, [request], sampling):
        click.echo(printable(piece.text) if out.is_terminal else piece.text, nl=False)
    click.echo()


@click.command()
@click.argument("text")
@_writing_options("A soft prompt or mixture; may be repeated.", several=True)
def compare(
    text: str,
    prompts: PromptChoice,
    sampling: Sampling,
    how: WritingOptions,
    model: ModelChoice,
    engine: EngineOptions,
    as_json: bool,
) -> None:
    """Continue TEXT without and with each soft prompt, from the same seed, side by side. "-" reads standard input."""
    text = _text_of(text)
    loaded = how.applied(prompts.load_any())
    given = [(text, prompt) for prompt in (None, *loaded.values())]
    base, path = _described(model, engine.runner, prompts, loaded, given, len(given))
    from sordino.engine.generate import TextRequest, check_request, complete
    from sordino.engine.runners.build import writing

    requests = [TextRequest(text, prompt, how.seed) for text, prompt in given]
    for request in requests:
        check_request(base, request, sampling)
    with err.status("Writing ..."), writing(base, path, requests, sampling, len(requests)) as on:
        continued = complete(on, requests, sampling)
    if as_json:
        results = [
            {"soft_prompt": label, "continuation": each} for label, each in zip([None, *loaded], continued, strict=True)
        ]
        print_json({"text": text, "seed": how.seed, "model": base.name, "results": results})
    else:
        show_side_by_side(text, [WITHOUT, *loaded], continued)


def show_side_by_side(text: str, headings: Sequence[str], texts: Sequence[str]) -> None:
    """Columns where the terminal has room for them, else one after another."""
    out.print(printable(text), style="dim")
    if out.is_terminal and out.width // len(headings) >= MIN_COLUMN:
        _print_columns(headings, texts)
        return
    for heading, each in zip(headings, texts, strict=True):
        out.print(f"\n{one_line(heading)}", style="bold")
        out.print(printable(each.strip("\n")))


def _print_columns(headings: Sequence[str], texts: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for heading in headings:
        # Equal columns: the eye compares line with line.
        shown.add_column(one_line(heading), ratio=1, overflow="fold")
    shown.add_row(*(printable(each.strip("\n")) for each in texts))
    out.print(shown)


def _requests(
    base: DescribedModel,
    lines: Sequence[BatchLine],
    prompts: Sequence[StoredPrompt | None],
    seed: int,
    sampling: Sampling,
) -> list[TextRequest]:
    """The requests of all lines, checked before the first token is drawn: a batch fails whole or not at all."""
    from sordino.engine.generate import TextRequest, check_request

    pairs = zip(lines, prompts, strict=True)
    requests = [TextRequest(line.text, prompt, seed if line.seed is None else line.seed) for line, prompt in pairs]
    for line, request in zip(lines, requests, strict=True):
        check_request(base, request, sampling, where=line.where)
    return requests


def _answers(on: BaseModel | Runner, requests: Sequence[TextRequest], sampling: Sampling) -> list[dict[str, Any]]:
    from sordino.engine.generate import generate

    answers: list[dict[str, Any]] = [{"continuation": "", "seed": request.seed, "finish": ""} for request in requests]
    for piece in generate(on, requests, sampling):
        answers[piece.request]["continuation"] += piece.text
        answers[piece.request]["finish"] = piece.finish or ""
    return answers


def _text_of(text: str | None) -> str:
    """TEXT, or standard input without its last line end."""
    if text == "-":
        return read_text("-").replace("\r\n", "\n").removesuffix("\n")
    return text or ""
