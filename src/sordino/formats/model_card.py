"""README.md beside a PEFT adapter: the model card that the Hub reads, made from a prompt, and what such a card claims.

The head is the Hub's metadata (huggingface.co/docs/hub/model-cards); its `sordino` object is what a list of prompts needs to know
before a file is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from sordino.formats.meta_keys import BASE_KEYS, is_hash, is_number, is_size
from sordino.prompts.description import facts, one_line
from sordino.prompts.fit import Stated
from sordino.prompts.kv_prompt import KVPrompt, KVShape, SinglePrompt
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

CARD = "README.md"
HUB_TAG = "soft-prompt"
_SEAL = b"<!-- sordino "
_SAMPLES = 3
# Of the texts of a card that a list shows.
_LONGEST = 500
_BASE_KEYS = ("family", "d_model", "n_layers", "vocab_size", "fingerprint")
_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
# What the Hub knows licences by (huggingface.co/docs/hub/repositories-licenses); any other is "other", with its name.
_LICENCES = frozenset(  # As a list, it would fill a screen.
    """afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0
    cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 creativeml-openrail-m gemma gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1
    llama3.2 llama3.3 llama4 mit mpl-2.0 odbl odc-by openrail openrail++ pddl unlicense wtfpl zlib other unknown""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Claims:
    """What a card says of its prompt. Nothing of it was checked, and a file may say something else.

    stated: for `fit`, as a file's header would say it. kind, n_tokens: "" and 0 where the card does not say them.
    """

    name: str = ""
    description: str = ""
    base_model: str = ""
    licence: str = ""
    rating: str = ""
    kind: str = ""
    n_tokens: int = 0
    content_hash: str = ""
    stated: Stated = field(default_factory=lambda: Stated(Metadata(), 0))


def card(prompt: SinglePrompt, *, repository: str = "", language: str = "") -> bytes:
    """The card. repository: USER/NAME where it will be, or "" for a folder. language: ISO 639 code, or ""."""
    known = prompt.metadata
    head = "".join(
        # JSON is YAML, and quotes what YAML would take for something else.
        f"{name}: {json.dumps(value)}\n"
        for name, value in sorted(_head(prompt, language).items())
    )
    article = "An" if prompt.kind[0] in "aeiou" else "A"
    by = f" by {known.author}" if known.author else ""
    base = f" for `{known.base.id}`" if known.base.id else ""
    parts = [
        f"# {known.name or 'A soft prompt'}",
        known.description,
        f"{article} {prompt.kind} of {prompt.n_tokens} virtual tokens{by}{base}, made with Sordino. The base model itself stays as "
        "it is.",
        *_use(known, repository),
        *_samples(known),
        "## What was measured",
        "\n".join(f"- {line}" for line in _measured(known.heldout)) or "Nothing: no held-out texts were given.",
        *_recipe(known),
        "## What it is",
        "\n".join(f"- {label}: {one_line(value)}" for label, value in _facts(prompt)),
    ]
    body = "\n\n".join(part for part in parts if part)
    return _sealed(f"---\n{head}---\n\n{body}\n\n".encode("utf-8", "backslashreplace"))


def is_edited(content: bytes) -> bool:
    """Whether this is not as `card` wrote it: it was then edited, and no other card may replace it."""
    text, _, seal = content.rpartition(_SEAL)
    return not seal or _sealed(text) != content


def claims_of(head: Mapping[str, Any]) -> Claims:
    """What the metadata of a stranger's card says, as far as it is of the right kind."""
    ours = head.get("sordino")
    ours = ours if isinstance(ours, Mapping) else {}
    stated = ours.get("base")
    stated = stated if isinstance(stated, Mapping) else {}
    model = head.get("base_model")
    model = _text(model[0] if isinstance(model, list) and model else model)
    sizes = {key: stated[key] for key in _BASE_KEYS if BASE_KEYS[key][1](stated.get(key))}
    base, kv = BaseRef(id=model, **sizes), ours.get("kv")
    licence, content_hash = _text(head.get("license")), _text(ours.get("content_sha256"))
    return Claims(
        _text(ours.get("name")),
        _text(ours.get("description")),
        model,
        (_text(head.get("license_name")) if licence == "other" else "") or licence,
        _text(ours.get("rating")),
        _text(ours.get("kind")),
        ours["tokens"] if is_size(ours.get("tokens")) else 0,
        content_hash if is_hash(content_hash) else "",
        Stated(Metadata(base=base), base.d_model, KVShape(*kv) if _is_shape(kv) else None),
    )


def _head(prompt: SinglePrompt, language: str) -> dict[str, object]:
    known = prompt.metadata
    fields: dict[str, object] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": list(dict.fromkeys((HUB_TAG, "sordino", "peft", *known.tags))),
    }
    if _HUB_ID.fullmatch(known.base.id):
        fields |= {"base_model": known.base.id, "base_model_relation": "adapter"}
    if known.licence:
        licence = known.licence.lower()
        fields |= {"license": licence} if licence in _LICENCES else {"license": "other", "license_name": known.licence}
    if language:
        fields["language"] = language
    base = {key: getattr(known.base, key) for key in _BASE_KEYS if getattr(known.base, key)}
    ours = {
        "name": known.name,
        "description": known.description[:_LONGEST],
        "rating": known.rating,
        "kind": prompt.kind,
        "tokens": prompt.n_tokens,
        "content_sha256": prompt.content_hash,
        "base": base | ({"d_model": prompt.d_model} if isinstance(prompt, SoftPrompt) else {}),
        "kv": [prompt.shape.layers, prompt.shape.heads, prompt.shape.channels] if isinstance(prompt, KVPrompt) else [],
    }
    return fields | {"sordino": {key: value for key, value in ours.items() if value}}


def _use(known: Metadata, repository: str) -> Iterator[str]:
    if repository:
        yield "## Use"
        yield f"```sh\npip install sordino\nsordino install hf:{repository}\nsordino ui\n```"
        yield "The `.zip` is a soft prompt of KoboldAI's format, for programs that read those. In PEFT:"
    if known.base.id:
        yield (
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{known.base.id}")\n'
            f'model = PeftModel.from_pretrained(model, "{repository or "THIS_FOLDER"}")\n```'
        )
    if known.placement == "after_bos":
        yield "It was trained to stand after BOS. PEFT puts it before, where it works less well."
    if not known.attention.plain:
        yield f"It has {known.attention}, which Sordino gives it. PEFT ignores that, and its effect fades in a long text."


def _samples(known: Metadata) -> Iterator[str]:
    """Openings with what the model wrote without and with the prompt."""
    if known.samples:
        yield "## With and without"
    for sample in known.samples[:_SAMPLES]:
        for part in ("prompt", "without", "with"):
            if sample.get(part):
                yield f"{part.capitalize()}:\n\n{_fenced(sample[part])}"


def _measured(heldout: Mapping[str, Any]) -> Iterator[str]:
    """Sentences from the file's held-out results; what is not there, or no number, is left out."""
    nll = _mapping(heldout.get("nll"))
    own, plain = nll.get("soft_prompt"), nll.get("no_prompt", nll.get("none"))
    if is_number(own) and is_number(plain):
        interval = heldout.get("gain_interval")
        within = ""
        if isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)):
            within = f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
        over = f" over {heldout['tokens']:,} tokens" if is_size(heldout.get("tokens")) else ""
        yield (
            f"Gain on held-out texts of its kind: {plain - own:.3f} nats a token{within} "
            f"({plain:.3f} without, {own:.3f} with{over})."
        )
    for key, what in (("best_instruction", "the best instruction"), ("best_excerpt", "the best excerpt of real text")):
        if is_number(nll.get(key)):
            yield f"Loss with {what} in its place: {nll[key]:.3f}."
    if isinstance(heldout.get("worth_tokens"), str):
        yield f"It is worth {one_line(heldout['worth_tokens'])} tokens of real text."
    for distance, kept in _mapping(heldout.get("gain_kept")).items():
        if is_number(kept):
            yield f"Kept of the gain after {one_line(str(distance))} tokens of other text: {kept:.0%}."
    other = _mapping(heldout.get("off_domain"))
    own, plain = other.get("soft_prompt"), other.get("no_prompt")
    if is_number(own) and is_number(plain):
        damage = f"{own - plain:.3f} nats a token" if own > plain else "none"
        yield f"Damage on texts of other kinds: {damage} ({plain:.3f} without, {own:.3f} with)."


def _recipe(known: Metadata) -> Iterator[str]:
    rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in known.training.items()]
    if rows:
        yield "## How it was made"
        yield "\n".join(
            ["| setting | value |", "|---|---|", *(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows)]
        )


def _facts(prompt: SinglePrompt) -> Iterator[tuple[str, str]]:
    """What `sordino show` prints, without what is elsewhere in the card."""
    for label, value in facts(Path(), "", prompt):
        if label not in ("file", "description", "training", "held-out"):
            yield label, value
    if prompt.metadata.base.fingerprint:
        yield "fingerprint of the base model's weights", prompt.metadata.base.fingerprint


def _is_shape(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) == 3 and all(is_size(size) and size for size in value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    return value[:_LONGEST] if isinstance(value, str) else ""


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def _fenced(text: str) -> str:
    """A block of text as it is; its fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _sealed(text: bytes) -> bytes:
    return text + _SEAL + hashlib.sha256(text).hexdigest().encode() + b" -->\n"
