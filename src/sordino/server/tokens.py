"""Counting tokens under names of vLLM, Aphrodite and text-generation-webui: SillyTavern fills its context by these counts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from pydantic import StrictStr
from starlette.concurrency import run_in_threadpool

from sordino.server.errors import refusing
from sordino.server.serving import serving_of

router = APIRouter(tags=["tokens"])


@router.post("/tokenize")
@router.post("/v1/tokenize")
async def tokenize(request: Request, prompt: Annotated[StrictStr, Body(embed=True)]) -> dict[str, Any]:
    """The tokens of a text, as vLLM and Aphrodite answer."""
    ids = await token_ids(request, prompt, "prompt")
    return {"count": len(ids), "tokens": ids, "max_model_len": serving_of(request).context_length}


@router.post("/v1/internal/encode")
async def encode(request: Request, text: Annotated[StrictStr, Body(embed=True)]) -> dict[str, Any]:
    """The tokens of a text, as text-generation-webui answers."""
    ids = await token_ids(request, text, "text")
    return {"length": len(ids), "tokens": ids}


@router.get("/v1/internal/model/info")
async def model_info(request: Request) -> dict[str, Any]:
    """What SillyTavern asks for to learn that tokens can be counted."""
    return {"model_name": serving_of(request).model, "lora_names": []}


async def token_ids(request: Request, text: str, field: str) -> list[int]:
    """Raises Refused."""
    with refusing(field):
        return await run_in_threadpool(serving_of(request).base.encode, text)
