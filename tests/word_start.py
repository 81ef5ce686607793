"""A tiny model whose tokenizer marks the first word of a text, as Llama 2's, TinyLlama's, Mistral's and Phi-3's do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny_models import tiny

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel

# first: the mark at a text's beginning only. legacy: also after every special token, as older tokenizer.json files have it.
Kind = Literal["first", "legacy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MARK = "\u2581"
END, TURN_END = "</s>", "<|end|>"
_WORDS = ("yes", "no", "good", "bad", "The", "lamp", "was", "cold", "lit", "Verdict", "saw", "nothing")
# TinyLlama-Chat's and Zephyr's.
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# Phi-3's: its marker of a turn's end takes the line break after it.
GREEDY_TEMPLATE = TEMPLATE.replace("eos_token", f"'{TURN_END}'")


def word_start_tokenizer(
    kind: Kind = "first", *, template: str = TEMPLATE, bos: bool = False
) -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", END, TURN_END, *(f"<0x{byte:02X}>" for byte in range(256)), MARK]
    pieces += [chr(code) for code in range(33, 127)]
    merges = []
    for word in (*(MARK + word for word in _WORDS), "yes", "no"):
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    if kind == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", END)])
    tokenizer.add_special_tokens([AddedToken(TURN_END, special=True, normalized=False, rstrip=True)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=END, unk_token="<unk>")
    fast.chat_template = template
    return fast


def word_start_base(
    kind: Kind = "first", *, template: str = TEMPLATE, bos: bool = False, dtype: torch.dtype = torch.float64
) -> BaseModel:
    from sordino.models import base_model

    tokenizer = word_start_tokenizer(kind, template=template, bos=bos)
    network = tiny("llama", dtype=dtype, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    return base_model.from_parts(network, tokenizer, name=f"tiny-{kind}", fingerprint=kind)
