"""The tokens that stand for soft prompts in a baked model, and a chat template that writes them.

A soft prompt `keeper` of n virtual tokens becomes n new tokens `<|keeper:0|>` ... `<|keeper:n-1|>`. Their input embeddings are its
vectors, so the text `<|keeper:0|>...<|keeper:n-1|>` in front of another text is the soft prompt in front of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, DoesNotFit, ModelError
from sordino.models import chat_template
from sordino.models.description import DescribedModel
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.soft_prompt import SoftPrompt

# The chat template's variable that names the soft prompt; "" for none.
VARIABLE = "soft_prompt"
# The template's own variable: the text that it writes.
_WRITTEN = "soft_tokens"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, eq=False)
class BakedPrompt:
    """A soft prompt and the name that its tokens bear."""

    name: str
    prompt: SoftPrompt

    @property
    def tokens(self) -> list[str]:
        return [f"<|{self.name}:{place}|>" for place in range(self.prompt.n_tokens)]

    @property
    def text(self) -> str:
        """To be put in front of a text."""
        return "".join(self.tokens)


def token_name(label: str) -> str:
    """A soft prompt's label as a name for tokens: what neither a template nor a tokenizer trips over."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", label).strip("-")[:64]


def to_bake(prompts: Mapping[str, SinglePrompt]) -> list[BakedPrompt]:
    """Soft prompts by name. Raises BadInput for those that cannot be tokens."""
    baked = []
    for name, prompt in prompts.items():
        if not isinstance(prompt, SoftPrompt):
            raise BadInput(
                "a KV prompt is keys and values of every layer, which no token has",
                where=name,
                do="train with --kind embedding, or distil one: sordino distil --kind embedding",
            )
        if not _NAME.fullmatch(name):
            raise BadInput("a name for tokens", where=name, expected="letters, digits, . - _")
        baked.append(BakedPrompt(name, prompt))
    return baked


def check_placement(model: DescribedModel, prompts: Sequence[BakedPrompt]) -> None:
    """Raise DoesNotFit for a soft prompt that stands before the BOS of this model."""
    for one in prompts:
        if one.prompt.metadata.placement == "start" and model.bos_ids:
            raise DoesNotFit(
                "the soft prompt stands before BOS, and programs write BOS first",
                where=one.name,
                do="train it with --placement after_bos",
            )


def check_unbaked(model: DescribedModel, prompts: Sequence[BakedPrompt]) -> None:
    """Raise BadInput for a base model whose vocabulary or chat template has soft prompts already: both would be written."""
    words = model.tokenizer.get_vocab()
    if any(token in words for one in prompts for token in one.tokens) or model.template_reads(_WRITTEN):
        raise BadInput(
            "this base model has soft prompts as tokens already",
            where=model.name,
            do="bake all of them at once, into the model without any",
        )


def vectors(prompts: Sequence[BakedPrompt], scale: float) -> NDArray[np.float32]:
    """[N, D]: the rows of the new tokens, one after the other, for a model that multiplies its embeddings with `scale`."""
    return np.asarray(np.concatenate([one.prompt.matrix for one in prompts]) / scale, dtype=np.float32)


def not_kept(prompts: Sequence[BakedPrompt]) -> list[str]:
    """What the soft prompts ask for and a baked model does not do, a line each."""
    return [
        f"{one.name} asks for {one.prompt.metadata.attention}, which a baked model does not keep: its tokens get the attention of "
        "any others"
        for one in prompts
        if not one.prompt.metadata.attention.plain
    ]


def with_tokens(template: str, prompts: Sequence[BakedPrompt], model: DescribedModel) -> str:
    """A chat template that writes the tokens in front of the conversation: after BOS where it writes one, else first.

    The variable `soft_prompt` chooses by name, "" none; without it the first is written. Another name is an error.
    """
    lines = [f"{{%- if {VARIABLE} is not defined -%}}{{%- set {_WRITTEN} = '{prompts[0].text}' -%}}"]
    lines += [f"{{%- elif {VARIABLE} == '{one.name}' -%}}{{%- set {_WRITTEN} = '{one.text}' -%}}" for one in prompts]
    known = ", ".join(one.name for one in prompts)
    lines.append(f"{{%- elif {VARIABLE} -%}}{{{{- raise_exception('{VARIABLE} is none of: {known}') -}}}}")
    head = "".join([*lines, f"{{%- else -%}}{{%- set {_WRITTEN} = '' -%}}{{%- endif -%}}"])
    after_bos = head + re.sub(r"\bbos_token\b", f"(bos_token + {_WRITTEN})", template)
    # A template may mention BOS and not write it.
    if model.bos_ids and _rendered(after_bos, model).count(prompts[0].tokens[0]) == 1:
        return after_bos
    return f"{head}{{{{ {_WRITTEN} }}}}{template}"


def _rendered(template: str, model: DescribedModel) -> str:
    """A conversation, "" where the template refuses it."""
    try:
        return chat_template.rendered(
            model.tokenizer, [{"role": "user", "content": "Hello"}], {"chat_template": template}, where=model.name
        )
    except ModelError:
        return ""
