"""How well a soft prompt fits a base model: decided from what its file says, without a model in memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from sordino.errors import DoesNotFit
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

FitKind = Literal["exact", "same family", "unknown", "no"]


@dataclass(frozen=True)
class Fit:
    """kind: the answer. reason: a clause for the user. forcible: whether a `no` may be overridden (the width agrees)."""

    kind: FitKind
    reason: str
    forcible: bool = True


def fit(model: BaseRef, d_model: int, metadata: Metadata, *, names: Sequence[str] = ()) -> Fit:
    """How well a prompt of width `d_model` fits `model`, which goes by `names` besides its id.

    exact         the fingerprints agree: trained on these very weights
    same family   architecture, sizes and vocabulary agree: a fine-tune, another quantisation
    unknown       the width agrees and the file says too little, as all old files do
    no            another width (never loads), or known to be made for another model of the same width (can be forced)
    """
    said = metadata.base
    title = model.id or next(iter(names), "this model")
    if d_model != model.d_model:
        return Fit("no", f"it is {d_model} wide and {title} is {model.d_model} wide", forcible=False)
    if said.fingerprint and said.fingerprint == model.fingerprint:
        return Fit("exact", f"it was trained on these very weights of {title}")
    differences = _differences(said, model)
    if differences:
        origin = f"{said.id}: " if said.id else ""
        return Fit("no", f"it was made for another model ({origin}{', '.join(differences)})")
    if said.family and said.n_layers and said.vocab_size:
        origin = f" ({said.id})" if said.id else ""
        return Fit(
            "same family", f"it was made for a model of the same kind and size as {title}{origin}, with other weights"
        )
    return Fit("unknown", _hint(metadata, title, (model.id, *names)))


def weakest(fits: Sequence[Fit]) -> Fit:
    """The fit of what needs all of these; of equals the first."""
    order: tuple[FitKind, ...] = ("no", "unknown", "same family", "exact")
    return min(fits, key=lambda fit: (order.index(fit.kind), fit.forcible))


def made_for(prompt: SoftPrompt, model: BaseRef, *, force: bool = False) -> SoftPrompt:
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
    return prompt.with_metadata(base=base, supported=supported)


def _differences(said: BaseRef, model: BaseRef) -> list[str]:
    """What the file says about its base model and `model` contradicts. What either leaves out contradicts nothing."""
    pairs = (
        ("family", family_name(said.family), family_name(model.family)),
        ("layers", said.n_layers, model.n_layers),
        ("vocabulary", said.vocab_size, model.vocab_size),
    )
    return [f"{what} {theirs} instead of {ours}" for what, theirs, ours in pairs if theirs and ours and theirs != ours]


def family_name(model_type: str) -> str:
    """transformers' model type without the suffix that tells a text-only build from a multimodal one."""
    return model_type.removesuffix("_text")


def _hint(metadata: Metadata, title: str, names: Sequence[str]) -> str:
    said = [name for name in (metadata.base.id, *metadata.supported) if name]
    if not said:
        return "its width agrees, and its file does not say which model it was made for"
    listed = ", ".join(said[:3]) + (", ..." if len(said) > 3 else "")
    ours = {plain for plain in map(_plain, names) if plain}
    if any(_alike(_plain(name), plain) for name in said for plain in ours):
        return f"its width agrees and its file names {listed}, as this model is called"
    return f"its width agrees, but its file names {listed}, not {title}"


def _plain(name: str) -> str:
    """A model's name without its owner, case and punctuation: "EleutherAI/gpt-j-6B" -> "gptj6b"."""
    return re.sub(r"[^a-z0-9]", "", name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower())


def _alike(first: str, second: str) -> bool:
    shorter, longer = sorted((first, second), key=len)
    # Three characters and fewer ("opt", "gpt") are in too many names.
    return first == second or (len(shorter) > 3 and shorter in longer)
