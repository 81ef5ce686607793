"""KoboldCpp's routes beside generation: tokens, log probabilities, and what clients ask for and this server does not have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import Field, StrictInt, StrictStr
from starlette.concurrency import run_in_threadpool

from sordino.engine.sampling import Drawn
from sordino.models.description import DescribedModel
from sordino.server.echo import chat_logprobs, text_logprobs
from sordino.server.errors import Refused
from sordino.server.kobold_generation import kobold_state_of
from sordino.server.serving import serving_of
from sordino.server.tokens import token_ids

router = APIRouter(tags=["KoboldCpp"])

_Text = Annotated[StrictStr, Body(embed=True)]
_Ids = Annotated[list[StrictInt], Body(embed=True), Field(max_length=1 << 20, fail_fast=True)]


@router.post("/api/extra/tokencount")
@router.post("/api/extra/tokenize")
async def tokenize(request: Request, prompt: _Text) -> dict[str, Any]:
    """The tokens of a text."""
    ids = await token_ids(request, prompt, "prompt")
    return {"value": len(ids), "ids": list(ids)}


@router.post("/api/extra/detokenize")
async def detokenize(request: Request, ids: _Ids) -> dict[str, Any]:
    """The text of tokens."""
    base = serving_of(request).base
    if any(not 0 <= token < base.vocab_size for token in ids):
        raise Refused(422, f"Must be 0 to {base.vocab_size - 1}.", field="ids")
    return {"result": await run_in_threadpool(base.decode, ids), "success": True}


@router.get("/api/extra/last_logprobs")
@router.post("/api/extra/last_logprobs")
async def last_logprobs(request: Request, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The log probabilities of the last generation's tokens; null where it did not ask for them (`logprobs`)."""
    base, last = serving_of(request).base, kobold_state_of(request).last
    genkey = (body or {}).get("genkey")
    if last is None or not last.fields.logprobs or genkey not in (None, last.fields.genkey):
        return {"logprobs": None}
    return {"logprobs": await run_in_threadpool(_logprobs, base, tuple(last.drawn))}


def _logprobs(base: DescribedModel, drawn: Sequence[Drawn]) -> dict[str, Any]:
    return {"content": chat_logprobs(base, drawn), **text_logprobs(base, [one.token for one in drawn], drawn)}


# Clients ask for these and count on an answer: there is no story of the server's own, and nothing makes pictures.


@router.get("/api/extra/preloadstory")
async def preloadstory() -> dict[str, Any]:
    """Empty: the server keeps no story."""
    return {}


@router.get("/sdapi/v1/options")
async def picture_options() -> dict[str, Any]:
    """Empty: nothing here makes pictures."""
    return {}


@router.get("/sdapi/v1/sd-models")
@router.get("/sdapi/v1/samplers")
@router.get("/sdapi/v1/upscalers")
async def picture_models() -> list[Any]:
    """Empty: nothing here makes pictures."""
    return []
