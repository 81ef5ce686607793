"""A soft prompt in front of the texts of a transformers model that is in memory already.

Shape key: B texts, S positions (soft prompt, BOS and text, padded on the left), P virtual tokens and BOS, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from sordino.engine.detokenizer import HALF
from sordino.errors import ConfigError, ModelError
from sordino.forward.placement import leading_ids, prompt_embeds
from sordino.models.base_model import BaseModel, from_parts
from sordino.models.context import check_context
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Text = str | Sequence[int]


@dataclass(frozen=True, eq=False)
class AttachedPrompt:
    """A soft prompt and the transformers model it stands in front of. Made by `attach`."""

    base: BaseModel
    prompt: SoftPrompt

    def __call__(self, texts: Text | Sequence[Text]) -> dict[str, Any]:
        """Arguments for the model's `generate`, for one text or a batch. A text is a string or its token ids.

        Special tokens in a string are text; ids are for chats: `tokenizer.apply_chat_template(...)`. A BOS in front of ids is put
        where the soft prompt wants it.

        inputs_embeds [B, S, D] in the model's dtype and attention_mask [B, S], padded on the left; eos_token_id and pad_token_id.
        Raises ConfigError where a text does not fit the model's context.
        """
        prefix_PD = prompt_embeds(self.base, self.prompt)
        rows = [torch.cat([prefix_PD, self._embeds(text)]) for text in _batch(texts)]
        longest = max((len(row) for row in rows), default=0)
        check_context(
            {"soft prompt and text": longest, "new": 1},
            self.base.context_length,
            what="a text",
            where="texts",
            do="shorten the text",
        )
        embeds_BSD = prefix_PD.new_zeros(len(rows), longest, prefix_PD.shape[1], dtype=self.base.dtype)
        mask_BS = torch.zeros(len(rows), longest, dtype=torch.long, device=self.base.device)
        for b, row in enumerate(rows):
            embeds_BSD[b, longest - len(row) :] = row
            mask_BS[b, longest - len(row) :] = 1
        stops = sorted(self.base.stop_ids)
        padding = self.base.tokenizer.pad_token_id
        return {
            "inputs_embeds": embeds_BSD,
            "attention_mask": mask_BS,
            "eos_token_id": stops or None,
            "pad_token_id": padding if padding is not None else next(iter(stops), 0),
        }

    def decode(self, ids_BT: Tensor) -> list[str]:
        """The texts of what `generate` returns: up to the first token that ends a text, without half a character at the end."""
        written = (takewhile(lambda token: token not in self.base.stop_ids, ids) for ids in ids_BT.tolist())
        return [self.base.decode(list(ids)).rstrip(HALF) for ids in written]

    def _embeds(self, text: Text) -> Tensor:
        """[T, D] in float32, as the soft prompt; a BOS that belongs after it included."""
        ids = self.base.encode(text) if isinstance(text, str) else self.base.without_bos(text)
        ids = [*leading_ids(self.base, self.prompt.metadata.placement), *ids]
        with torch.no_grad():
            return self.base.embed(torch.tensor(ids, dtype=torch.long, device=self.base.device)).float()


def _batch(texts: Text | Sequence[Text]) -> list[Text]:
    if isinstance(texts, str) or (texts and isinstance(texts[0], int)):
        return [cast(Text, texts)]
    return list(cast(Sequence[Text], texts))


def attach(network: PreTrainedModel, tokenizer: Any, prompt: StoredPrompt, *, force: bool = False) -> AttachedPrompt:
    """A soft prompt for a causal language model and its tokenizer, both from transformers. The model is left as it is.

        # transformers does not hold a prompt's attention as the text grows.
        prompt = sordino.load("voice.zip").with_metadata(attention=sordino.PromptAttention())
        attached = sordino.attach(network, tokenizer, prompt)
        ids = network.generate(**attached(["It rained all day", "The door"]), max_new_tokens=60, do_sample=False)
        print(attached.decode(ids))

    Greedy tokens are those of `Model.generate` with temperature 0. force: take a prompt of the right width that was made for
    another model. Raises DoesNotFit, ModelError for an encoder-decoder, ConfigError for a mixture, whose components write together,
    and for a prompt with hold or strength or a KV prompt: `Model.from_transformers` runs those.
    """
    if not isinstance(prompt, SoftPrompt):
        why = "transformers runs one prompt per text" if isinstance(prompt, Mixture) else "it has no vectors"
        raise ConfigError(
            f"a {prompt.kind} cannot be attached: {why}",
            where=prompt.metadata.name,
            do="use sordino.Model.from_transformers(network, tokenizer).generate",
        )
    if network.config.is_encoder_decoder:
        raise ModelError("an encoder-decoder takes its prompt in front of the encoder", where=network.config.model_type)
    if not prompt.metadata.attention.plain:
        raise ConfigError(
            "a prompt with hold or strength cannot be attached: transformers' generate takes no mask that grows with the text",
            where=prompt.metadata.name,
            do="use sordino.Model.from_transformers(network, tokenizer).generate, or "
            "prompt.with_metadata(attention=sordino.PromptAttention()) for one that is not held",
        )
    base = from_parts(network, tokenizer, name=network.name_or_path or network.config.model_type, freeze=False)
    base.check_fit(prompt, force=force)
    return AttachedPrompt(base, prompt)
