"""Fields of other programs' clients that this server has under another name, or not at all: one table for all routes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from sordino.engine.config import REPETITION, TEMPERATURE, TFS, TOP_A, TOP_K, TOP_P, TYPICAL, Sampling
from sordino.server.errors import Refused

# Fields of OpenAI's routes that are accepted at null and at these values, which change nothing, and refused at any other.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI's own.
    "best_of": (1,),
    "suffix": ("",),
    "user": (),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "safety_identifier": (),
    "prompt_cache_key": (),
    # vLLM's and Aphrodite's.
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "guided_json": ({},),
    "guided_regex": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "nsigma": (0,),
    "top_n_sigma": (0,),
    "skew": (0,),
    "min_keep": (0, 1),
    # text-generation-webui's.
    "add_bos_token": (True,),
    "num_beams": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "no_repeat_ngram_size": (0,),
    "penalty_alpha": (0,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "grammar_string": ("",),
    "json_schema": ({},),
    "repetition_decay": (0,),
    # KoboldCpp's.
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "adaptive_target": (-0.01, -1),
    "rep_pen_slope": (0, 1),
    "grammar": ("",),
    "grammar_retain_state": (False,),
    "render_special": (False,),
    "memory": ("",),
    "images": ([],),
}
# Names of a person, of a cache or of the server: they ask for nothing, so any text is accepted.
LABELS = frozenset({"user", "safety_identifier", "prompt_cache_key", "api_type", "api_server", "genkey"})
# Fields that change no text here, whatever their value: clients send them and have no way to leave them out.
UNUSED: dict[str, str] = {
    "api_type": "names the program that SillyTavern takes this server for",
    "api_server": "this server's own address",
    "genkey": "a generation of OpenAI's routes ends when its client leaves",
    "truncation_length": "the context is the model's",
    "num_ctx": "the context is the model's",
    "include_reasoning": "thoughts are text like any other here",
    "spaces_between_special_tokens": "special tokens are never shown",
    "early_stopping": "for beam search, which is not implemented (`num_beams`)",
    "length_penalty": "for beam search, which is not implemented (`num_beams`)",
    "negative_prompt": "for `guidance_scale`, which is not implemented",
    "mirostat_tau": "for `mirostat`, which is not implemented",
    "mirostat_eta": "for `mirostat`, which is not implemented",
    "adaptive_decay": "for `adaptive_target`, which is not implemented",
    "guided_decoding_backend": "for the `guided_` fields, which are not implemented",
    "guided_whitespace_pattern": "for the `guided_` fields, which are not implemented",
    "dynamic_temperature": "`dynatemp_range` says it",
    "dynatemp_mode": "`dynatemp_range` says it",
    "max_tokens_second": "a text is never slowed down",
    "speculative_ngram": "guessing ahead changes no text",
    "samplers": "llama.cpp's order of samplers; `sampler_order` is understood",
    "cache_prompt": "texts are cached in any case",
    "n_probs": "`logprobs` is understood",
    "trim_stop": "stop sequences are never part of the text here",
    "quiet": "texts are never printed here",
}
# Other programs' names of fields of OpenAI's routes.
ALIASES: dict[str, str] = {
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "min_length": "min_tokens",
    "typical": "typical_p",
    "rep_pen": "repetition_penalty",
    "repeat_penalty": "repetition_penalty",
    "rep_pen_range": "repetition_range",
    "repetition_penalty_range": "repetition_range",
    "repeat_last_n": "repetition_range",
    "sampler_seed": "seed",
    "stopping_strings": "stop",
    "use_default_badwordsids": "ban_eos_token",
    "bypass_eos": "ignore_eos",
    "banned_tokens": "banned_strings",
    "dynatemp_low": "dynatemp_min",
    "dynatemp_high": "dynatemp_max",
}
# Names of the steps in text-generation-webui's and Aphrodite's `sampler_priority`.
_STEPS: dict[str, tuple[int, ...]] = {
    "repetition_penalty": (REPETITION,),
    "penalties": (REPETITION,),
    "temperature": (TEMPERATURE,),
    "top_k": (TOP_K,),
    "top_p": (TOP_P,),
    "top_p_top_k": (TOP_P, TOP_K),
    "top_a": (TOP_A,),
    "tfs": (TFS,),
    "typical_p": (TYPICAL,),
}


def translate(options: BaseModel) -> None:
    """Take over fields of other programs that this server has under its own name. Raises Refused for one that has a wrong value, or
    says something else than the field that it stands for.
    """
    extra = options.model_extra or {}
    # All at once: an assignment makes a new dictionary of the others.
    for foreign, value in [(name, extra.pop(name)) for name in ALIASES if name in extra]:
        own = ALIASES[foreign]
        known = getattr(options, own)
        if value is None or known == value:
            continue
        if known is not None:
            message = f"{foreign} is {own} here, and the two differ: {str(value)[:40]}, {str(known)[:40]}"
            raise Refused(400, message, field=foreign)
        try:
            options.__pydantic_validator__.validate_assignment(options, own, value)
        except ValidationError as error:
            raise Refused(400, f"{foreign}: {error.errors()[0]['msg']}", field=foreign) from error


def check_fields(extra: Mapping[str, Any]) -> None:
    """Raise Refused for fields that are unknown, and for those that would change the answer and are not implemented."""
    for field, value in extra.items():
        if field in UNUSED:
            continue
        if field not in NEUTRAL:
            raise Refused(400, f"unknown field: {field}", field=field, code="unknown_parameter")
        if value is None or _is_neutral(field, value) or (field in LABELS and isinstance(value, str)):
            continue
        raise Refused(
            400,
            f"{field} is not implemented here, and this value would change the answer",
            field=field,
            code="unsupported_parameter",
        )


def _is_neutral(field: str, value: Any) -> bool:
    """Whether this value changes nothing. JSON's true is no number, though Python's True equals 1."""
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in NEUTRAL[field])


def order_of(numbers: Sequence[int] | None, names: Sequence[str] | None, *, temperature_last: bool) -> tuple[int, ...]:
    """The order of the steps of sampling that a client wants: KoboldAI's numbers, or names; steps that it leaves out come last.

    Raises ValueError for what is no order.
    """
    order = Sampling.order
    if numbers is not None:
        # Older clients know six steps: the repetition penalty comes first then.
        order = (REPETITION, *numbers) if len(numbers) == 6 else tuple(numbers)
        if sorted(order) != list(range(7)):
            raise ValueError("Must be a permutation of the first 6 or 7 whole numbers.")
    elif names is not None:
        known = [step for name in names for step in _STEPS.get(name, ())]
        order = tuple(dict.fromkeys((*known, *order)))
    if temperature_last:
        order = (*(step for step in order if step != TEMPERATURE), TEMPERATURE)
    return order


def texts_in(given: Sequence[str] | str) -> tuple[str, ...]:
    """A list of texts that is sent as such, as JSON in a text, or with commas between: SillyTavern does all three."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = str(given).split(",")
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError("a list of texts was expected")
    return tuple(one for one in given if one)
