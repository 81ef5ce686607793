"""What can stand in front of a text while its loss is measured: a soft prompt, nothing, an instruction, real text.

All of them are prefixes: token embeddings are run through the model once, exactly as a soft prompt is, so that nothing but
what is in front differs between two conditions.

Shape key: P prefix positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sordino.forward.placement import leading_ids, prefix_embeds, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, PlacementName, SoftPrompt
from sordino.texts.pieces import Piece

Kind = Literal["soft prompt", "no prompt", "instruction", "examples", "excerpt"]

NO_PROMPT = "no prompt"
# Characters that hold a token of any text one meets; more are read where they do not suffice.
_CHARACTERS_A_TOKEN = 8


@dataclass(frozen=True)
class Condition:
    """embeds_PD: the prefix in float32, a BOS included. leading: ids that every row's own text begins with (a BOS behind a
    prompt that was placed before it). tokens: what is in front, BOS not counted. text and ids: text that rows are joined with,
    and its tokens; of vectors, of nothing and of whole documents, behind which a text begins, "" and (). Conditions of one kind
    and label are draws of the same thing, and are averaged.
    """

    kind: Kind
    label: str
    embeds_PD: Tensor
    leading: tuple[int, ...]
    tokens: int
    text: str = ""
    ids: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Positions in front of a text's first token."""
        return int(self.embeds_PD.shape[0]) + len(self.leading)

    def opening(self, tokens: int) -> Condition:
        """The first `tokens` tokens of its text: the others are then the rows' own."""
        if tokens == len(self.ids):
            return self
        end = self.embeds_PD.shape[0] - len(self.ids) + tokens
        return replace(self, embeds_PD=self.embeds_PD[:end], ids=self.ids[:tokens], tokens=tokens)


def soft_prompt(base: BaseModel, label: str, prompt: SoftPrompt) -> Condition:
    leading = leading_ids(base, prompt.metadata.placement)
    return Condition("soft prompt", label, prompt_embeds(base, prompt), leading, prompt.n_tokens)


def matrix(base: BaseModel, label: str, matrix_PD: Tensor, placement: PlacementName) -> Condition:
    """A soft prompt that is no file yet. Of no virtual tokens (P = 0) it is what stands around them: BOS, or nothing."""
    embeds_PD = prefix_embeds(base, matrix_PD, placement)
    return Condition("soft prompt", label, embeds_PD, leading_ids(base, placement), int(matrix_PD.shape[0]))


def no_prompt(base: BaseModel) -> Condition:
    return Condition("no prompt", NO_PROMPT, prompt_embeds(base, None), (), 0)


def instruction(base: BaseModel, text: str) -> Condition:
    """The text as a heading: a blank line follows it unless it ends in white space of its own."""
    return _of_text(base, "instruction", text, _heading(text))


def with_examples(base: BaseModel, text: str, shots: Sequence[Piece]) -> Condition:
    """An instruction (or "") and answered rows behind it, each with a blank line after it. shots: prompts with completions."""
    examples = f"{len(shots)} example{'s' * (len(shots) > 1)}"
    shown = "".join(f"{shot.prompt}{shot.text}\n\n" for shot in shots)
    return _of_text(
        base, "examples", f"{text} + {examples}" if text else examples, (_heading(text) if text else "") + shown
    )


def _heading(text: str) -> str:
    return text if text[-1:].isspace() else text + "\n\n"


def default_instructions(metadata: Metadata) -> tuple[str, ...]:
    """What one would write by hand, from what a soft prompt's file says about itself."""
    texts = []
    if metadata.name:
        texts.append(f"The following was written by {metadata.name}:")
    if metadata.author and metadata.author != metadata.name:
        texts.append(f"The following was written by {metadata.author}:")
    if metadata.description:
        texts.append(f"Write in this style: {metadata.description}")
    return tuple(texts) or ("The following is a text in a strongly marked voice of its own:",)


def excerpts(
    base: BaseModel, texts: Sequence[Piece], lengths: Sequence[int], *, draws: int, seed: int
) -> tuple[list[Condition], list[str]]:
    """For every length `draws` excerpts of the texts, and notes about lengths that the texts are too short for.

    Of one draw the shorter excerpts are the ends of the longer ones: a longer one is the shorter with more before it, as a
    writer would give it, and the curve over the lengths is smoother for it.
    """
    random = np.random.default_rng(seed)
    drawn = [_consecutive_ids(base, texts, max(lengths), random) for _ in range(draws)]
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
    return replace(_of_ids(base, kind, label, ids), text=text, ids=tuple(ids))


def _of_ids(base: BaseModel, kind: Kind, label: str, ids: Sequence[int]) -> Condition:
    embeds_PD = base.embed(torch.tensor(ids, dtype=torch.long, device=base.device)).float()
    return Condition(kind, label, prefix_embeds(base, embeds_PD, "after_bos"), (), len(ids))


def _consecutive_ids(base: BaseModel, texts: Sequence[Piece], tokens: int, random: np.random.Generator) -> list[int]:
    """`tokens` ids from a random place, at a word's start; of one text if it is long enough, else running on into the next.

    Fewer if all the texts together hold fewer.
    """
    sizes = [len(piece.words) for piece in texts]
    # Long texts are likelier: every character has the same chance.
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
    """`text` from the first word that begins at `start` or later; all of it if none does."""
    while 0 < start < len(text) and not text[start - 1].isspace():
        start += 1
    return text[start:].lstrip() or text


def _first_ids(base: BaseModel, text: str, tokens: int) -> list[int]:
    size = tokens * _CHARACTERS_A_TOKEN
    ids = base.encode(text[:size])
    if len(ids) <= tokens and size < len(text):
        ids = base.encode(text)
    return ids[:tokens]
