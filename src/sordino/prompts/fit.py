"""How well a soft prompt fits a base model, and whether several fit one: decided from what their files say, without a model.

This is the only place that says what "the same base model" means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, Literal, TypeVar

from sordino.errors import BadInput, DoesNotFit
from sordino.prompts.kv_prompt import KVPrompt, KVShape, SinglePrompt
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import BaseRef, Metadata

P = TypeVar("P", bound=SinglePrompt)
FitKind = Literal["exact", "same family", "unknown", "no"]


@dataclass(frozen=True)
class Fit:
    """kind: the answer. reason: a clause for the user. forcible: whether a `no` may be overridden (the width agrees)."""

    kind: FitKind
    reason: str
    forcible: bool = True


@dataclass(frozen=True)
class Stated:
    """What a file's header says of one prompt. d_model: 0 where a KV prompt does not state it. kv: of a KV prompt."""

    metadata: Metadata
    d_model: int
    kv: KVShape | None = None


def stated_by(prompt: Prompt) -> Stated:
    """What `prompt` says, as its file does."""
    return Stated(prompt.metadata, prompt.d_model, prompt.shape if isinstance(prompt, KVPrompt) else None)


def fit(model: BaseRef, prompt: Stated, *, kv: KVShape | None = None, names: Sequence[str] = ()) -> Fit:
    """How well a prompt fits `model`, whose keys and values are `kv` (None: not known), and which is also called by `names`.

    exact         the fingerprints agree: trained on these very weights
    same family   architecture, sizes and vocabulary agree: a fine-tune, another quantisation
    unknown       the sizes agree and the file says no more, as all old files do
    no            other sizes (never loads), or made for another model of the same sizes (can be forced)
    """
    metadata, stated = prompt.metadata, prompt.metadata.base
    title = model.id or next(iter(names), "this model")
    if model.d_model and prompt.d_model not in (0, model.d_model):
        return Fit("no", f"it is {prompt.d_model} wide and {title} is {model.d_model} wide", forcible=False)
    if prompt.kv and kv and prompt.kv != kv:
        return Fit("no", f"it has {prompt.kv} and {title} has {kv}", forcible=False)
    if prompt.kv and model.n_layers not in (0, prompt.kv.layers):
        layers = f"it has {prompt.kv.layers} layers and {title} has {model.n_layers}"
        return Fit("no", layers, forcible=False)
    if stated.fingerprint and stated.fingerprint == model.fingerprint:
        return Fit("exact", f"it was trained on these very weights of {title}")
    differences = _differences(stated, model)
    if differences:
        origin = f"{stated.id}: " if stated.id else ""
        return Fit("no", f"it was made for another model ({origin}{', '.join(differences)})")
    if stated.family and stated.n_layers and stated.vocab_size:
        origin = f" ({stated.id})" if stated.id else ""
        return Fit(
            "same family", f"it was made for a model of the same kind and size as {title}{origin}, with other weights"
        )
    return Fit("unknown", _hint(metadata, title, (model.id, *names)))


def checked(found: Fit, name: str, *, force: bool) -> Fit:
    """The fit of the soft prompt `name`, for warnings. Raises DoesNotFit where it is `no`, unless the width agrees and `force` is
    given."""
    if found.kind == "no" and not (found.forcible and force):
        raise DoesNotFit(
            f"the soft prompt does not fit the base model: {found.reason}",
            where=name,
            do="give --force to try it all the same" if found.forcible else "choose a model of its sizes",
        )
    return found


def weakest(fits: Sequence[Fit]) -> Fit:
    """The fit of a prompt that needs all of these: the first of the worst."""
    order: tuple[FitKind, ...] = ("no", "unknown", "same family", "exact")
    return min(fits, key=lambda fit: (order.index(fit.kind), fit.forcible))


def check_one_base(prompts: Sequence[SinglePrompt], purpose: str, *, force: bool = False) -> list[str]:
    """Check that the prompts can be for one base model, as far as their files say. Returns what is uncertain, a line each.

    purpose: what the prompts cannot be otherwise: "blended", "compared". force: accept different models of one width.
    Raises BadInput where there is no prompt, DoesNotFit.
    """
    if not prompts:
        raise BadInput("there is no soft prompt", where=purpose)
    for one, other in combinations(prompts, 2):
        found = _fit_together(one, other)
        if found.kind == "no" and not (force and found.forcible):
            raise DoesNotFit(
                f"soft prompts of different base models cannot be {purpose}",
                where=other.title,
                expected=_origin(one),
                got=_origin(other),
                do="choose soft prompts of one base model",
            )
    first = prompts[0]
    notes: dict[FitKind, str] = {
        "no": "{other} was made for another base model than {first}",
        "unknown": "{first} and {other} are of one width, and their files do not say that they are for one base model",
        "same family": "{other} was made for other weights of the same kind of model than {first}",
    }
    kinds = [(other, _fit_together(first, other).kind) for other in prompts[1:]]
    return [notes[kind].format(first=first.title, other=other.title) for other, kind in kinds if kind in notes]


def common_base(bases: Sequence[BaseRef]) -> BaseRef:
    """What all of them state alike; of the sizes and the family, what any of them states."""
    common: dict[str, Any] = {}
    for item in fields(BaseRef):
        values = {getattr(base, item.name) for base in bases}
        values -= {item.default} if item.name in ("d_model", "family", "n_layers", "vocab_size") else set()
        if len(values) == 1:
            common[item.name] = values.pop()
    return BaseRef(**common)


def made_for(prompt: P, model: BaseRef, *, force: bool = False) -> P:
    """`prompt`, with the base model and the supported names filled in where its file did not say them. Raises DoesNotFit.

    All but the fingerprint: that a file was made on these very weights is for its maker to say.
    """
    known = prompt.metadata.base
    if known.id and model.id and known.id != model.id and not force:
        raise DoesNotFit(
            "the file already says that it was made for another base model",
            where="--model",
            expected=known.id,
            got=model.id,
            do="leave --model out, or fill in what the file does not say with --force",
        )
    filled = {each.name: getattr(known, each.name) or getattr(model, each.name) for each in fields(known)}
    base = replace(BaseRef(**filled), fingerprint=known.fingerprint)
    # Its id, never what the user called it: that may be a path.
    supported = prompt.metadata.supported or ((model.id,) if model.id else ())
    return replace(prompt, metadata=replace(prompt.metadata, base=base, supported=supported))


def _fit_together(one: SinglePrompt, other: SinglePrompt) -> Fit:
    """How well two prompts fit one base model. Symmetric, but for the words of the reason."""
    pairs = [(stated_by(a), stated_by(b)) for a, b in ((one, other), (other, one))]
    found = weakest([fit(replace(a.metadata.base, d_model=a.d_model), b, kv=a.kv) for a, b in pairs])
    fingerprints = {prompt.metadata.base.fingerprint for prompt in (one, other)} - {""}
    if found.kind == "unknown" and len(fingerprints) > 1:
        return Fit("no", "they were trained on different weights, and not both files state the family")
    return found


def _origin(prompt: SinglePrompt) -> str:
    base, kv = prompt.metadata.base, stated_by(prompt).kv
    parts = (
        base.id or base.family,
        f"{prompt.d_model} wide" if prompt.d_model else "",
        str(kv) if kv else f"{base.n_layers} layers" if base.n_layers else "",
        f"vocabulary {base.vocab_size}" if base.vocab_size else "",
    )
    return " ".join(filter(None, parts))


def _differences(stated: BaseRef, model: BaseRef) -> list[str]:
    """What the file says about its base model and `model` contradicts. What either leaves out contradicts nothing."""
    pairs = (
        ("family", family_name(stated.family), family_name(model.family)),
        ("layers", stated.n_layers, model.n_layers),
        ("vocabulary", stated.vocab_size, model.vocab_size),
    )
    return [f"{what} {theirs} instead of {ours}" for what, theirs, ours in pairs if theirs and ours and theirs != ours]


def family_name(model_type: str) -> str:
    """transformers' model type without the suffix of text-only builds of multimodal models."""
    return model_type.removesuffix("_text")


def _hint(metadata: Metadata, title: str, names: Sequence[str]) -> str:
    named = [name for name in (metadata.base.id, *metadata.supported) if name]
    if not named:
        return "its width agrees, and its file does not say which model it was made for"
    listed = ", ".join(named[:3]) + (", ..." if len(named) > 3 else "")
    ours = {plain for plain in map(plain_name, names) if plain}
    if any(are_alike(plain_name(name), plain) for name in named for plain in ours):
        return f"its width agrees and its file names {listed}, as this model is called"
    return f"its width agrees, but its file names {listed}, not {title}"


def plain_name(name: str) -> str:
    """A model's name without its owner, case and punctuation: "EleutherAI/gpt-j-6B" -> "gptj6b"."""
    return re.sub(r"[^a-z0-9]", "", name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower())


def are_alike(first: str, second: str) -> bool:
    """Whether two models, by their plain names, may be called after one another."""
    shorter, longer = sorted((first, second), key=len)
    # Short names ("opt", "gpt") are part of too many others.
    return first == second or (len(shorter) > 3 and shorter in longer)
