"""README.md beside a PEFT adapter: the model card that the Hub reads, from a prompt's metadata."""

from __future__ import annotations

import hashlib
import json

from sordino.prompts.soft_prompt import Metadata

CARD = "README.md"
_SEAL = b"<!-- sordino "


def card(metadata: Metadata, kind: str, n_tokens: int) -> bytes:
    """The card. kind: of the prompt, as people call it."""
    tags = dict.fromkeys(("peft", "soft-prompt", *metadata.tags))
    fields: dict[str, object] = {"library_name": "peft", "pipeline_tag": "text-generation", "tags": list(tags)}
    if metadata.base.id:
        fields |= {"base_model": metadata.base.id, "base_model_relation": "adapter"}
    if metadata.licence:
        fields["license"] = metadata.licence
    # JSON is YAML, and quotes what YAML would take for something else.
    head = "".join(f"{name}: {json.dumps(value)}\n" for name, value in sorted(fields.items()))
    lines = [f"# {metadata.name or 'A soft prompt'}", metadata.description]
    by = f" by {metadata.author}" if metadata.author else ""
    model = f" for `{metadata.base.id}`" if metadata.base.id else ""
    article = "An" if kind[0] in "aeiou" else "A"
    lines.append(f"{article} {kind} of {n_tokens} virtual tokens{by}{model}, made with Sordino.")
    if metadata.base.id:
        lines.append(
            f"```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{metadata.base.id}")\n'
            'model = PeftModel.from_pretrained(model, "THIS_FOLDER")\n```'
        )
    body = "\n\n".join(line for line in lines if line)
    return _sealed(f"---\n{head}---\n\n{body}\n\n".encode("utf-8", "backslashreplace"))


def is_edited(content: bytes) -> bool:
    """Whether this is no card as `card` writes it: somebody's own text, which no other card may replace."""
    text, _, seal = content.rpartition(_SEAL)
    return not seal or _sealed(text) != content


def _sealed(text: bytes) -> bytes:
    return text + _SEAL + hashlib.sha256(text).hexdigest().encode() + b" -->\n"
