"""Inside a soft prompt, for the page: norms and likeness at once; what must be measured on a text when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from sordino import formats
from sordino.engine.threads import in_thread_of_its_own
from sordino.errors import SordinoError
from sordino.evaluation.analysis.inspection import affordable, depth_json, depth_of
from sordino.evaluation.config import InspectConfig
from sordino.evaluation.off_domain import own_text
from sordino.prompts.nearest import percentiles, word_norms
from sordino.prompts.similarity import check_one_base, pooled
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.server.errors import Refused, refused
from sordino.server.page.prompts import read_named, vocabulary_of
from sordino.server.serving import Serving, state_of

router = APIRouter(prefix="/ui/prompts", include_in_schema=False)

# Positions of all shortened prompts and of what they read, beside whoever writes meanwhile: up to 118 virtual tokens.
_BUDGET = 24_000
_PASS_TOKENS = 1024
_KEPT = 64
_ALIKE = 5


@router.get("/{name}/inside")
def surface(request: Request, name: str) -> dict[str, Any]:
    """Norms against the vocabulary's, and the library's most alike soft prompts. Nothing is run through the model."""
    serving, prompt = _fitting(request, name)

    def measured() -> dict[str, Any]:
        norms_V = _kept(request, serving, "", lambda: in_thread_of_its_own(lambda: word_norms(vocabulary_of(serving))))
        norms_P = np.linalg.norm(prompt.matrix.astype(np.float64), axis=1)
        low, middle, high = np.percentile(norms_V, [5, 50, 95]).tolist()
        return {
            "norms": norms_P.tolist(),
            "percentiles": percentiles(norms_P, norms_V).tolist(),
            "vocabulary": {"p5": low, "p50": middle, "p95": high},
        }

    try:
        known = _kept(request, serving, f"surface {prompt.content_hash}", measured)
    except (SordinoError, OSError, NotImplementedError) as error:
        raise Refused(501, f"the words of this model's file cannot be read: {error}") from error
    return {**known, "alike": _alike(serving, name, prompt)}


@router.post("/{name}/inside")
def depth(request: Request, name: str) -> dict[str, Any]:
    """Importance and attention, on a packaged text: some seconds of computing."""
    serving, prompt = _fitting(request, name)
    base = serving.backend.network
    if base is None:
        raise Refused(
            501, f"{serving.runner} does not tell its attention: start the server with --runner torch for this"
        )
    limit = affordable(prompt.n_tokens, _BUDGET)
    if not limit:
        raise Refused(
            400,
            f"of {prompt.n_tokens} virtual tokens it takes minutes: `sordino inspect {name} --limit 128` measures it",
        )

    def measured() -> dict[str, Any]:
        found = in_thread_of_its_own(
            lambda: depth_of(base, prompt, own_text(prompt), InspectConfig(limit=limit, pass_tokens=_PASS_TOKENS))
        )
        return depth_json(found)

    try:
        found: dict[str, Any] = _kept(request, serving, f"depth {prompt.content_hash}", measured)
        return found
    except SordinoError as error:
        raise refused(error, field="name") from error


def _fitting(request: Request, name: str) -> tuple[Serving, SoftPrompt]:
    state = state_of(request)
    if not isinstance(state, Serving):
        raise Refused(503, "no model is loaded: a soft prompt is looked at with the words of its model")
    _, prompt = read_named(request, name)
    if prompt.d_model != state.base.d_model:
        raise Refused(400, "the soft prompt is of another width than this model's words")
    return state, prompt


def _kept(request: Request, serving: Serving, key: str, make: Callable[[], Any]) -> Any:
    """`make()`, or what it gave for this model and key before."""
    known = request.app.state.insides
    whole = serving.base.fingerprint or serving.base.id, key
    if whole not in known:
        known[whole] = make()
        while len(known) > _KEPT:
            known.popitem(last=False)
    return known[whole]


def _alike(serving: Serving, name: str, prompt: SoftPrompt) -> list[dict[str, Any]]:
    """The most alike first; what cannot be read or compared is left out."""
    found: list[tuple[float, str]] = []
    # Asked once for each look, so the folder as it is now: the list may be a second old.
    serving.voices.refresh()
    for voice in serving.voices.usable():
        if voice.entry.name == name:
            continue
        try:
            other = formats.read(voice.entry.path)
            check_one_base([prompt, other])
        except SordinoError:
            continue
        found.append((-pooled(prompt.matrix, other.matrix), voice.entry.name))
    return [{"id": other, "cosine": -less} for less, other in sorted(found)[:_ALIKE]]
