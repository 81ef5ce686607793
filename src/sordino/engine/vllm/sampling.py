"""How tokens are drawn under vLLM: by vLLM where it has every setting of a request, else by our sampler in it (`sampler.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sordino.engine.config import REPETITION, TEMPERATURE, TOP_K, TOP_P, Sampling
from sordino.engine.requests import Request
from sordino.engine.sampling import is_on

# Of a request's `extra_args`: what our sampler needs.
KEY = "sordino"
# vLLM's own bounds: it raises smaller temperatures, refuses larger ones, and cuts biases.
_COLDEST, _HOTTEST, _MOST_BIAS = 0.01, 2.0, 100.0
# Settings that vLLM lacks; at their defaults they are off.
_LACKING = (
    *("typical", "top_a", "tfs", "repetition_range", "repetition_slope", "dry_multiplier"),
    *("xtc_probability", "dynatemp_range", "smoothing_factor", "banned"),
)
_OFF = Sampling()
# The steps that it has, in its order.
_STEPS = (REPETITION, TEMPERATURE, TOP_K, TOP_P)


def beyond(sampling: Sampling) -> str:
    """The first setting that vLLM has not, or does otherwise than we do; "" where it draws as we do."""
    return next(_beyond(sampling), "")


def _beyond(sampling: Sampling) -> Iterator[str]:
    yield from (name for name in _LACKING if getattr(sampling, name) != getattr(_OFF, name))
    if sampling.temperature and not _COLDEST <= sampling.temperature <= _HOTTEST:
        yield "temperature"
    biased = [word for word, _ in sampling.logit_bias]
    if len(set(biased)) < len(biased) or any(abs(bias) > _MOST_BIAS for _, bias in sampling.logit_bias):
        yield "logit_bias"
    # vLLM filters by min_p first, and what is left then sums to 1.
    if sampling.min_p and sampling.top_p < 1:
        yield "min_p"
    # It divides logits before it subtracts from them.
    if sampling.repetition_penalty != 1 and (sampling.presence_penalty or sampling.frequency_penalty):
        yield "repetition_penalty"
    # It forbids only tokens that would stop the text.
    if sampling.min_tokens and sampling.end == "ignore":
        yield "min_tokens"
    on = [step for step in _STEPS if is_on(step, sampling)]
    if sampling.temperature and [step for step in sampling.order if step in on] != on:
        yield "order"


def parameters(request: Request, ends: frozenset[int]) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams for a request. ends: the ids that end a text.

    Text is made of the ids here, so that its characters are whole and its stop strings are ours.
    """
    sampling = request.sampling
    shared = {
        "max_tokens": sampling.max_tokens,
        "logprobs": sampling.logprobs,
        "ignore_eos": True,
        "stop_token_ids": [] if sampling.end == "ignore" else sorted(ends),
        "detokenize": False,
    }
    if beyond(sampling):
        # It leaves one token, which is then the likeliest.
        return {**shared, "temperature": 0.0, "extra_args": {KEY: _packed(request, ends)}}
    least = sampling.max_tokens if sampling.end == "forbid" else min(sampling.min_tokens, sampling.max_tokens)
    return {
        **shared,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "min_tokens": least,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": request.seed if sampling.temperature else None,
    }


def _packed(request: Request, ends: frozenset[int]) -> str:
    return json.dumps(
        {"sampling": asdict(request.sampling), "ids": request.ids, "seed": request.seed, "ends": sorted(ends)}
    )


def unpacked(text: str) -> tuple[Sampling, tuple[int, ...], int, frozenset[int]]:
    """(sampling, ids of the text, seed, ends) of what `parameters` packed."""
    found = json.loads(text)
    sampling = {name: _tuples(value) for name, value in found["sampling"].items()}
    return Sampling(**sampling), tuple(found["ids"]), found["seed"], frozenset(found["ends"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
