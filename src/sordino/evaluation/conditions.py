"""The conditions under which the loss of a text is measured: after a soft prompt, nothing, an instruction or real text.

All of them are prefixes that run through the model once, a text as a soft prompt does, so two conditions differ in nothing else.

Shape key: P virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from sordino.forward.placement import leading_ids, most_positions, prefix_length
from sordino.forward.prefix import Prefixes
from sordino.forward.token_losses import length_of
from sordino.models.base_model import BaseModel
from sordino.models.context import check_context
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.pieces import Piece

Kind = Literal["soft prompt", "no prompt", "instruction", "examples", "excerpt"]

NO_PROMPT = "no prompt"
# Characters that hold a token of nearly any text; where they do not, the whole text is read.
_CHARACTERS_A_TOKEN = 8


@dataclass(frozen=True, eq=False)
class Condition:
    """A `forward.token_losses.Context`, and what it is called. tokens: virtual or real, without BOS. text: an instruction, whose
    `ids` are tokenized together with each row; else "". Conditions of the same kind and label are draws, and are averaged.
    """

    kind: Kind
    label: str
    prompt: Prompt | None
    positions: int
    leading: tuple[int, ...]
    tokens: int
    text: str = ""
    ids: tuple[int, ...] = ()
    prefix: Prefixes | None = None

    @property
    def length(self) -> int:
        """Positions before a text's first token."""
        return length_of(self) + len(self.leading)

    def opening(self, tokens: int) -> Condition:
        """The condition with the first `tokens` tokens of its text; the rows then hold the others."""
        return self if tokens == len(self.ids) else replace(self, ids=self.ids[:tokens], tokens=tokens)

    def behind(self, ids: Sequence[int], prefix: Prefixes | None = None) -> Condition:
        """The condition with more text after it. prefix: of all that."""
        return replace(self, ids=(*self.ids, *self.leading, *ids), leading=(), prefix=prefix)


@dataclass(frozen=True)
class MixedCondition:
    """A mixture in front of a text. tokens: of the longest component. ids: of the text after it, in each component's `ids` too."""

    label: str
    mixture: Mixture
    components: tuple[Condition, ...]
    ids: tuple[int, ...] = ()
    kind: Kind = "soft prompt"

    @property
    def tokens(self) -> int:
        return self.mixture.n_tokens

    @property
    def length(self) -> int:
        """Positions before a text's first token, after the longest component."""
        return max(condition.length for condition in self.components)


AnyCondition = Condition | MixedCondition


@dataclass(frozen=True)
class Baselines:
    """What soft prompts are compared with. instructions: empty for default ones. texts: training texts, for excerpts or examples;
    empty for none.
    """

    instructions: Sequence[str] = ()
    texts: Sequence[Piece] = ()


DEFAULT_BASELINES = Baselines()


def check_room(base: BaseModel, condition: AnyCondition, tokens: int, *, do: str = "lower --row-tokens") -> None:
    """Raise ConfigError unless the condition and a text of `tokens` tokens fit the model's context together."""
    check_context(
        {"in front": condition.length, "text": tokens},
        base.context_length,
        what="the condition together with the text",
        where=f"{condition.kind} {condition.label[:40]!r}",
        do=do,
    )


def room_in_front(base: BaseModel, row_tokens: int) -> int:
    """Positions that the model's context has in front of a window, beside BOS."""
    return base.context_length - row_tokens - most_positions(base, 0)


def soft_prompt(base: BaseModel, label: str, prompt: Prompt) -> Condition:
    leading = leading_ids(base, prompt.metadata.placement)
    return Condition("soft prompt", label, prompt, prefix_length(base, prompt), leading, prompt.n_tokens)


def mixture(base: BaseModel, label: str, mixed: Mixture) -> MixedCondition:
    return MixedCondition(label, mixed, tuple(soft_prompt(base, label, prompt) for prompt in mixed.components))


def prompt_condition(base: BaseModel, label: str, prompt: Prompt | Mixture) -> AnyCondition:
    """A soft prompt of any kind, or a mixture."""
    return mixture(base, label, prompt) if isinstance(prompt, Mixture) else soft_prompt(base, label, prompt)


def matrix(base: BaseModel, label: str, matrix_PD: Tensor, known: Metadata) -> Condition:
    """A soft prompt from its matrix, placed as `known` says. Without virtual tokens (P = 0) it is BOS, or nothing."""
    if len(matrix_PD) == 0:
        return replace(no_prompt(base), kind="soft prompt", label=label)
    return soft_prompt(base, label, SoftPrompt(matrix_PD.detach().cpu().numpy(), known))


def no_prompt(base: BaseModel) -> Condition:
    return Condition("no prompt", NO_PROMPT, None, prefix_length(base, None), (), 0)


def instruction(base: BaseModel, text: str) -> Condition:
    """The text as a heading: with a blank line after it, unless it ends in white space."""
    return _of_text(base, "instruction", text, _heading(text))


def with_examples(base: BaseModel, text: str, shots: Sequence[Piece]) -> Condition:
    """An instruction (or "") and answered rows, each followed by a blank line. shots: prompts with completions."""
    examples = f"{len(shots)} example{'s' * (len(shots) > 1)}"
    shown = "".join(f"{shot.prompt}{shot.text}\n\n" for shot in shots)
    return _of_text(
        base, "examples", f"{text} + {examples}" if text else examples, (_heading(text) if text else "") + shown
    )


def _heading(text: str) -> str:
    return text if text[-1:].isspace() else text + "\n\n"


def default_instructions(metadata: Metadata) -> tuple[str, ...]:
    """Instructions that a person might write, made from the metadata of a soft prompt, the most telling first.

    None without a description: beside a name alone, which is often a file's, every soft prompt looks good.
    """
    if not metadata.description:
        return ()
    names = dict.fromkeys(filter(None, [metadata.name, metadata.author]))
    return f"Write in this style: {metadata.description}", *(f"The following was written by {name}:" for name in names)


def excerpts(
    base: BaseModel, texts: Sequence[Piece], lengths: Sequence[int], *, draws: int, seed: int
) -> tuple[list[Condition], list[str]]:
    """`draws` excerpts of every length, and notes about lengths that the texts are too short for.

    Within a draw, a shorter excerpt is the end of every longer one, which makes the curve over the lengths smoother.
    """
    random = np.random.default_rng(seed)
    drawn = [consecutive_ids(base, texts, max(lengths), random) for _ in range(draws)]
    possible = [length for length in lengths if length <= len(drawn[0])]
    notes = [f"no excerpts of {n} tokens: the training text is shorter" for n in lengths if n not in possible]
    found = [
        _of_ids(base, "excerpt", f"{length} tokens of the training text", ids[-length:])
        for length in possible
        for ids in drawn
    ]
    return found, notes


def _of_text(base: BaseModel, kind: Kind, label: str, text: str) -> Condition:
    ids = base.encode(text)
    return replace(_of_ids(base, kind, label, ids), text=text)


def _of_ids(base: BaseModel, kind: Kind, label: str, ids: Sequence[int]) -> Condition:
    return replace(no_prompt(base), kind=kind, label=label, tokens=len(ids), ids=tuple(ids))


def consecutive_ids(base: BaseModel, texts: Sequence[Piece], tokens: int, random: np.random.Generator) -> list[int]:
    """`tokens` ids from a random word on, of one text or running on into the next. Fewer if all the texts hold fewer."""
    sizes = [len(piece.words) for piece in texts]
    # Weighted by length, so that every character has the same chance.
    place = int(random.choice(len(texts), p=np.array(sizes) / sum(sizes)))
    start = int(random.integers(max(1, sizes[place] - tokens * _CHARACTERS_A_TOKEN)))
    ids: list[int] = []
    for step in range(len(texts)):
        text = texts[(place + step) % len(texts)].words
        ids += _first_ids(base, _from_word(text, start) if step == 0 else text, tokens - len(ids))
        if len(ids) >= tokens:
            break
    return ids


def _from_word(text: str, start: int) -> str:
    """`text` from the first word at or after `start`; all of it if there is none."""
    while 0 < start < len(text) and not text[start - 1].isspace():
        start += 1
    return text[start:].lstrip() or text


def _first_ids(base: BaseModel, text: str, tokens: int) -> list[int]:
    size = tokens * _CHARACTERS_A_TOKEN
    ids = base.encode(text[:size])
    if len(ids) <= tokens and size < len(text):
        ids = base.encode(text)
    return ids[:tokens]
