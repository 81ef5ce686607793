"""What a component puts in front of a text.

Shape key: P virtual tokens or prefix positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sordino.errors import ConfigError
from sordino.forward.placement import leading_ids, prefix_embeds, prompt_embeds
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Placement, SoftPrompt
from sordino.texts.examples import Example


@dataclass(frozen=True)
class Front:
    """As `token_losses.Front`."""

    embeds_PD: Tensor
    leading: tuple[int, ...]


def front_of_prompt(base: BaseModel, prompt: SoftPrompt) -> Front:
    return Front(prompt_embeds(base, prompt), leading_ids(base, prompt.metadata.placement))


def front_of_matrix(base: BaseModel, matrix_PD: Tensor, placement: Placement) -> Front:
    return Front(prefix_embeds(base, matrix_PD, placement), leading_ids(base, placement))


def check_room(base: BaseModel, fronts: Sequence[Front], examples: Sequence[Example]) -> None:
    """The longest front and the longest example must fit the model's context together. Raises ConfigError."""
    front = max(len(front.embeds_PD) + len(front.leading) for front in fronts)
    longest = max(len(example.ids) for example in examples)
    if front + longest > base.context_length:
        raise ConfigError(
            "the longest soft prompt and the longest example do not fit the model's context",
            where="--row-tokens",
            expected=f"at most {base.context_length} positions together",
            got=f"{front} + {longest}",
            do="lower --row-tokens",
        )
