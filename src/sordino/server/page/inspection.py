"""Inside a soft prompt, for the page: norms and similar soft prompts at once; importance and attention on request."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from sordino import formats
from sordino.errors import SordinoError
from sordino.evaluation.analysis.inspection import affordable, depth_json, depth_of
from sordino.evaluation.config import InspectConfig
from sordino.evaluation.off_domain import own_text
from sordino.prompts.fit import check_one_base
from sordino.prompts.nearest import percentiles, word_norms
from sordino.prompts.similarity import pooled
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.server.errors import Refused, refusing
from sordino.server.page.prompts import cached, read_for, vocabulary_errors, vocabulary_of
from sordino.server.serving import Serving, state_of

router = APIRouter(prefix="/ui/prompts", include_in_schema=False)

# Positions of all shortened prompts with their text, so that others can go on writing: up to 118 virtual tokens.
_BUDGET = 24_000
_PASS_TOKENS = 1024
_SIMILAR = 5


@router.get("/{name}/inside")
def norms(request: Request, name: str) -> dict[str, Any]:
    """Norms against the vocabulary's, and the library's most similar soft prompts. Nothing is run through the model."""
    serving, prompt = _soft_prompt(request, name)

    with vocabulary_errors():
        norms_V = cached(request, serving, "norms", lambda: word_norms(vocabulary_of(serving)))
    norms_P = np.linalg.norm(prompt.matrix.astype(np.float64), axis=1)
    low, middle, high = np.percentile(norms_V, [5, 50, 95]).tolist()
    return {
        "norms": norms_P.tolist(),
        "percentiles": percentiles(norms_P, norms_V).tolist(),
        "vocabulary": {"p5": low, "p50": middle, "p95": high},
        "similar": _similar(serving, name, prompt),
    }


@router.post("/{name}/inside")
def depth(request: Request, name: str) -> dict[str, Any]:
    """Importance and attention, on a packaged text: some seconds of computing."""
    serving, prompt = _soft_prompt(request, name)
    base = serving.backend.network
    if base is None:
        message = f"{serving.runner} does not show its attention: start the server with --runner torch for this"
        raise Refused(501, message)
    limit = affordable(prompt.n_tokens, _BUDGET)
    if not limit:
        message = (
            f"{prompt.n_tokens} virtual tokens take minutes: measure them with `sordino inspect {name} --limit 128`"
        )
        raise Refused(400, message)

    def measured() -> dict[str, Any]:
        config = InspectConfig(limit=limit, pass_tokens=_PASS_TOKENS)
        return depth_json(depth_of(base, prompt, own_text(prompt), config))

    with refusing("name"):
        result: dict[str, Any] = cached(
            request, serving, f"depth {prompt.content_hash} {prompt.metadata.attention}", measured
        )
        return result


def _soft_prompt(request: Request, name: str) -> tuple[Serving, SoftPrompt]:
    """What is served, and a soft prompt of its width. Raises Refused."""
    state = state_of(request)
    if not isinstance(state, Serving):
        raise Refused(503, "no model is loaded: a soft prompt is inspected with the vocabulary of its model")
    return state, read_for(request, state, name)


def _similar(serving: Serving, name: str, prompt: SoftPrompt) -> list[dict[str, Any]]:
    """The most similar first; what cannot be read or compared is left out."""
    found: list[tuple[float, str]] = []
    # This is called rarely, so it scans the library as it is now.
    serving.prompts.refresh()
    for one in serving.prompts.usable():
        if one.entry.name == name:
            continue
        try:
            other = formats.read(serving.prompts.library.open(one.entry))
            check_one_base([prompt, other], "compared")
        except SordinoError:
            continue
        found.append((-pooled(prompt.matrix, other.matrix), one.entry.name))
    return [{"id": other, "cosine": -negative} for negative, other in sorted(found)[:_SIMILAR]]
