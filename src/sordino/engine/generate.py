"""Continue texts, each with its own soft prompt, a mixture of several, or none: steps an engine until all have ended.

`generate` and `complete` write on a base model, with PyTorch, or on any runner.

A row's random stream depends on its seed alone, never on the rest of the batch. Text is emitted once its characters are whole and
it can no longer become a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Chunk, End, Event, Request, check_room, request_for, widths
from sordino.engine.runners.encoder_decoder_runner import EncoderDecoderRunner
from sordino.engine.runners.llama_copies import cells_of
from sordino.engine.runners.runner import Runner
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Drawn, Sampling
from sordino.forward.placement import prefix_length
from sordino.models.base_model import BaseModel
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import Mixture, components_of
from sordino.prompts.prompt import Prompt

FinishReason = Literal["length", "stop"]
# Positions of a step beside those of the rows that decode: enough to keep a processor busy.
_PREFILL = 2048
ADVICE = "shorten the text, lower --max-tokens, or continue fewer texts at once"


@dataclass(frozen=True)
class TextRequest:
    """A text to continue, or its ids without BOS; the soft prompt or mixture to continue it with; the seed of its random stream."""

    text: str | tuple[int, ...]
    prompt: Prompt | Mixture | None = None
    seed: int = 0


@dataclass(frozen=True)
class TextDelta:
    """New text of one request. request: its index. finish: set on a request's last delta only."""

    request: int
    text: str
    finish: FinishReason | None = None


def generate(on: BaseModel | Runner, requests: Sequence[TextRequest], sampling: Sampling) -> Iterator[TextDelta]:
    """Yield the text of the continuations as it comes, all requests in one batch. on: a base model for PyTorch, or a runner.

    Raises ConfigError where there is nothing to continue or a request does not fit the model's context, DoesNotFit for a soft
    prompt of another width, and OutOfMemory.
    """
    for events in _steps(on, requests, sampling):
        yield from _deltas(events)


def complete(on: BaseModel | Runner, requests: Sequence[TextRequest], sampling: Sampling) -> list[str]:
    """The whole continuations, in the order of the requests."""
    texts = [""] * len(requests)
    for delta in generate(on, requests, sampling):
        texts[delta.request] += delta.text
    return texts


@dataclass(frozen=True)
class DrawnText:
    """The tokens of a continuation. ended: an end-of-text token, which is not among them, came next."""

    tokens: tuple[Drawn, ...]
    ended: bool


def draw(
    base: BaseModel,
    requests: Sequence[TextRequest],
    sampling: Sampling,
    *,
    rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DrawnText]:
    """The continuations as tokens, in the order of the requests, `rows` at a time. progress: called with those done and all.

    Raises as `generate`.
    """
    drawn: list[list[Drawn]] = [[] for _ in requests]
    ended: dict[int, bool] = {}
    for events in _steps(base, requests, sampling, rows):
        for index, event in events:
            if isinstance(event, Chunk):
                drawn[index] += event.drawn
            elif event.error is not None:
                raise event.error
            else:
                ended[index] = event.reason == "stop"
                progress(len(ended), len(requests))
    return [DrawnText(tuple(tokens), ended[index]) for index, tokens in enumerate(drawn)]


def check_request(base: DescribedModel, request: TextRequest, sampling: Sampling, *, where: str = "") -> list[int]:
    """The ids of the request's own text, with a BOS where it belongs after the prompt (for a mixture, after any component).

    where: what the error calls the text. Raises ConfigError where there is nothing to continue, or text and new tokens do not fit
    the model's context.
    """
    return list(_checked(base, request, sampling, where).ids)


def rows_of(requests: Sequence[TextRequest]) -> int:
    """Rows of a runner that continue these together."""
    return sum(len(components_of(request.prompt)) for request in requests)


def longest_row(base: DescribedModel, requests: Sequence[TextRequest], sampling: Sampling) -> int:
    """Cells of llama.cpp that the longest of these requests' rows may need. Raises as `check_request`."""
    cells = [1]
    for request in requests:
        made = _checked(base, request, sampling)
        for prompt, ahead in zip(components_of(made.prompt), widths(made, base), strict=True):
            length = ahead + len(made.ids) + sampling.max_tokens
            cells.append(cells_of(prompt, prefix_length(base, prompt), length))
    return max(cells)


def _checked(base: DescribedModel, request: TextRequest, sampling: Sampling, where: str = "") -> Request:
    ids = base.encode(request.text) if isinstance(request.text, str) else list(request.text)
    made = request_for(base, ids, request.prompt, sampling, request.seed)
    check_room(
        made,
        widths(made, base),
        base.context_length,
        sides=base.encoder_decoder,
        where=where or f"TEXT {request.text[:30]!r}",
        do="shorten the text or lower --max-tokens",
    )
    return made


def _steps(
    on: BaseModel | Runner, requests: Sequence[TextRequest], sampling: Sampling, most: int | None = None
) -> Iterator[list[tuple[int, Event]]]:
    """The events of each step, with the indices of their requests. most: rows at a time, None for all."""
    if not requests:
        return
    base = on if isinstance(on, BaseModel) else on.model
    checked = [_checked(base, request, sampling) for request in requests]
    rows = rows_of(requests)
    queue, rows = (0, rows) if most is None else (len(requests), most)
    engine = Engine(
        _runner(on, rows) if isinstance(on, BaseModel) else on,
        Limits(rows=rows, queue=queue, tokens=rows + _PREFILL, chunk=_PREFILL),
    )
    index_of = {engine.submit(request): index for index, request in enumerate(checked)}
    while engine.busy:
        yield [(index_of[number], event) for number, event in engine.step()]


def _runner(base: BaseModel, rows: int) -> Runner:
    if base.encoder_decoder is not None:
        return EncoderDecoderRunner(base, advice=ADVICE)
    return TorchRunner(base, rows=rows, advice=ADVICE)


def _deltas(events: Sequence[tuple[int, Event]]) -> Iterator[TextDelta]:
    """One delta for each request that has events in a step. Raises the error of a request that failed."""
    texts: dict[int, str] = {}
    ends: dict[int, End] = {}
    for index, event in events:
        if isinstance(event, Chunk):
            texts[index] = event.text
        elif event.error is not None:
            raise event.error
        else:
            ends[index] = event
    for index in sorted({*texts, *ends}):
        text, end = texts.get(index, ""), ends.get(index)
        finish: FinishReason | None = None if end is None else "stop" if end.reason == "stop" else "length"
        if text or finish:
            yield TextDelta(index, text, finish)
