"""A generation of KoboldAI's routes: its fields, its start, and the task that reads its events."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from sordino.engine.requests import Chunk, request_for, room_for_text
from sordino.engine.sampling import Drawn, Sampling
from sordino.errors import BadInput, SordinoError
from sordino.models.description import DescribedModel
from sordino.prompts.mixture import StoredPrompt, with_attention
from sordino.server.errors import Refused, refused, refusing
from sordino.server.generation import Generation, client_of, continuations, leading_positions, seed_of
from sordino.server.instruct import stop_texts, text_ids
from sordino.server.kobold_fields import GenerateRequest, KoboldSettings, sampling_of, with_defaults
from sordino.server.sampler_fields import NAMES, sampler_settings
from sordino.server.serving import Serving, serving_of

NOT_VALID = "Must be a valid soft prompt name."
_FIELDS = {
    "stop": "stop_sequence",
    "repetition_penalty": "rep_pen",
    "repetition_slope": "rep_pen_slope",
    "repetition_range": "rep_pen_range",
    **NAMES,
}


@dataclass(eq=False)
class KoboldGeneration:
    """A running generation. texts: of each continuation so far. pieces: of the first one's text; None is the last. drawn: the first
    one's tokens."""

    fields: GenerateRequest
    generation: Generation
    seed: int
    began: float
    texts: list[str]
    pieces: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None
    aborted: bool = False
    reason: str = "length"
    new_tokens: int = 0
    drawn: list[Drawn] = field(default_factory=list)

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())
        # Its error is raised where the task is awaited, which is not the case once the client has left.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _run(self) -> None:
        try:
            async with aclosing(self.generation.stream()) as events:
                async for index, event in events:
                    if isinstance(event, Chunk):
                        self.new_tokens += len(event.drawn)
                        self.texts[index] += event.text
                        if index == 0:
                            self.drawn += event.drawn
                        if event.text and index == 0:
                            self.pieces.put_nowait(event.text)
                    else:
                        self.reason = event.reason
        except SordinoError:
            self.reason = "error"
            raise
        finally:
            self.pieces.put_nowait(None)

    def abort(self) -> None:
        self.aborted, self.reason = True, "aborted"
        if self.task is not None:
            self.task.cancel()

    async def finished(self) -> None:
        """Wait for the end, which may be an abort."""
        assert self.task is not None
        try:
            await asyncio.shield(self.task)
        except asyncio.CancelledError:
            if not self.aborted:
                self.abort()
                raise


@dataclass(eq=False)
class KoboldState:
    """What KoboldAI's routes keep between requests: settings, generations by key, and figures of the last one."""

    settings: KoboldSettings
    running: dict[str, KoboldGeneration] = field(default_factory=dict)
    last: KoboldGeneration | None = None
    last_seconds: float = 0.0
    total: int = 0

    def begin(self, generation: KoboldGeneration) -> None:
        self.running[generation.fields.genkey] = self.last = generation
        self.total += 1
        generation.start()

    def end(self, generation: KoboldGeneration) -> None:
        if self.running.get(generation.fields.genkey) is generation:
            del self.running[generation.fields.genkey]
        self.last_seconds = time.monotonic() - generation.began


def kobold_state_of(request: Request) -> KoboldState:
    state: KoboldState = request.app.state.kobold
    return state


async def begun(request: Request, body: dict[str, Any]) -> KoboldGeneration:
    """The generation that a request asks for, running. Raises Refused."""
    serving, state = serving_of(request), kobold_state_of(request)
    try:
        fields = GenerateRequest.model_validate(with_defaults(state.settings, body))
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(422, first["msg"], field=str(first["loc"][0])) from error
    if fields.max_length > serving.limits.max_tokens:
        raise Refused(422, f"Must be at most {serving.limits.max_tokens}.", field="max_length")
    with refusing("prompt"):
        prompt = await run_in_threadpool(_prompt_of, serving, fields)
    # The error names its field.
    with refusing():
        prompt = with_attention(prompt, fields.hold, fields.strength)
    sampling = await run_in_threadpool(_sampling_of, serving.base, fields)
    seed, room = seed_of(fields.sampler_seed), _room(serving, prompt, fields)
    with refusing("prompt"):
        ids = await run_in_threadpool(text_ids, serving.base, fields, room)
    request_0 = request_for(serving.base, ids, prompt, sampling, seed, client=client_of(request))
    generation = Generation(serving, "kobold", continuations(request_0, fields.n))
    try:
        generation.check()
    except SordinoError as error:
        named = ("soft_prompt", "hold", "strength", "logit_bias")
        at_fault = error.where if error.where in named else "prompt"
        raise refused(error, field=at_fault if isinstance(error, BadInput) else "") from error
    running = KoboldGeneration(fields, generation, seed, time.monotonic(), [""] * fields.n)
    state.begin(running)
    return running


def _sampling_of(base: DescribedModel, fields: GenerateRequest) -> Sampling:
    with refusing(names=_FIELDS):
        return sampling_of(fields, stop_texts(base, fields), sampler_settings(base, fields))


def _prompt_of(serving: Serving, fields: GenerateRequest) -> StoredPrompt | None:
    """The request's own soft prompt, none where the field is blank, else the server's default."""
    name = serving.prompts.default if fields.soft_prompt is None else fields.soft_prompt.strip() or None
    if name is None:
        return None
    try:
        prompt = serving.prompts.prompt(name)
    except BadInput as error:
        raise Refused(422, NOT_VALID, field="soft_prompt") from error
    serving.metrics.count_prompt(serving.prompts.named(name).entry.name)
    return prompt


def _room(serving: Serving, prompt: StoredPrompt | None, fields: GenerateRequest) -> int:
    """Positions for the text beside the soft prompt and the new tokens: a longer text loses its beginning."""
    context = min(fields.max_context_length, serving.context_length)
    room = room_for_text(serving.base, context, leading_positions(serving.base, prompt), fields.max_length)
    if room < 1:
        raise Refused(422, f"Leaves no room for the text in {context} positions.", field="max_length")
    return room
