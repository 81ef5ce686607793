"""A transformers folder whose vocabulary has soft prompts in it: weights, configuration, tokenizer, chat template, model card."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, processors
from torch import nn

from sordino.baking.tokens import BakedPrompt, vectors, with_tokens
from sordino.errors import ModelError
from sordino.models.base_model import BaseModel
from sordino.models.loading import quietly
from sordino.storage import atomic_folder


def bake_folder(
    base: BaseModel, target: Path, prompts: Sequence[BakedPrompt], *, silent: int, always: bool, card: str
) -> None:
    """base: its network and tokenizer are changed, so it is of no use afterwards. always: the tokenizer puts the first soft prompt
    in front of every text. card: the model card.

    Memory: the embeddings once more, twice where the output head was tied to them. Raises BadInput, StorageError, ModelError.
    """
    network: Any = base.network
    tokenizer = base.tokenizer
    tokens = [token for one in prompts for token in one.tokens]
    scale = embedding_scale(base)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(tokens)]
    if len(set(ids)) < len(tokens) or not all(
        tokenizer.decode([i]) == token for i, token in zip(ids, tokens, strict=True)
    ):
        raise ModelError("the tokenizer takes no new tokens", where=base.name)
    with quietly(), torch.no_grad():
        _untie(network)
        network.resize_token_embeddings(max(base.vocab_size, max(ids) + 1), mean_resizing=False)
        vectors_ND = torch.from_numpy(vectors(prompts, scale))
        network.get_input_embeddings().weight[ids] = vectors_ND.to(base.device, base.dtype)
        head: Any = network.get_output_embeddings()
        head.weight[ids] = head.weight[silent].clone()
        if getattr(head, "bias", None) is not None:
            head.bias[ids] = head.bias[silent].clone()
    template = tokenizer.chat_template
    if isinstance(template, dict):
        # Some models have a second template, for tools.
        tokenizer.chat_template = {name: with_tokens(text, prompts, base) for name, text in template.items()}
    elif template:
        tokenizer.chat_template = with_tokens(template, prompts, base)
    if always:
        _write_always(tokenizer, base.bos_ids, prompts[0])
    generation: Any = network.generation_config
    generation.suppress_tokens = sorted({*(generation.suppress_tokens or ()), *ids})
    with atomic_folder(target) as temporary, quietly():
        network.save_pretrained(temporary)
        # Every program reads the chat template from tokenizer_config.json, and not every one from a file of its own.
        tokenizer.save_pretrained(temporary, save_jinja_files=False)
        if always:
            _keep_processor(temporary / "tokenizer_config.json")
        (temporary / "README.md").write_text(card, encoding="utf-8")


def embedding_scale(base: BaseModel) -> float:
    """What the network multiplies a row of its embeddings with (Gemma's sqrt(d)), found by reading one."""
    weight_VD: Any = base.network.get_input_embeddings().weight
    with torch.no_grad():
        row = int(weight_VD[: min(len(weight_VD), 1024)].float().norm(dim=1).argmax())
        given_D, stored_D = base.embed(torch.tensor([row], device=base.device))[0].double(), weight_VD[row].double()
        return float(given_D @ stored_D / (stored_D @ stored_D))


def reserved_ids(base: BaseModel) -> set[int]:
    """Ids of special tokens that have no part in a text or a conversation."""
    tokenizer = base.tokenizer
    used = {
        *base.bos_ids,
        *base.stop_ids,
        *(int(i) for i in (tokenizer.pad_token_id, tokenizer.unk_token_id) if i is not None),
    }
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    template = str(tokenizer.chat_template or "")
    return {i for i, text in special.items() if i not in used and text not in template and i < base.vocab_size}


def _untie(network: Any) -> None:
    """The output head gets weights of its own."""
    embeddings, head = network.get_input_embeddings(), network.get_output_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(embeddings.weight.detach().clone(), requires_grad=False)
    for config in (network.config, network.config.get_text_config()):
        config.tie_word_embeddings = False


def _write_always(tokenizer: Any, bos_ids: Sequence[int], prompt: BakedPrompt) -> None:
    """The tokenizer's post-processor writes BOS, if there is one, and the soft prompt in front of every text."""
    tokens = [*tokenizer.convert_ids_to_tokens(list(bos_ids)), *prompt.tokens]
    opening = {"id": "opening", "ids": tokenizer.convert_tokens_to_ids(tokens), "tokens": tokens}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="opening $A", pair="opening $A $B:1", special_tokens=[opening]
    )


def _keep_processor(path: Path) -> None:
    """The classes of some families would make a post-processor of their own."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in ("add_bos_token", "add_eos_token"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
