"""A base model without its network: tokenizer, sizes, identity.

`BaseModel` adds the network. A runner that reads a .gguf file itself has no transformers network and needs only this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

from transformers import PreTrainedConfig

from sordino.errors import BadInput, DoesNotFit, ModelError
from sordino.models import chat_template, files
from sordino.models.files import ModelSource, Notify, silent
from sordino.models.loading import check_readable, read_config, read_tokenizer, reading
from sordino.prompts.fit import Fit, Stated, fit, stated_by, weakest
from sordino.prompts.kv_prompt import KVShape
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import BaseRef, PlacementName

# Markers of the end of a text or a turn, where the tokenizer has them as special tokens.
_END_MARKERS = (
    "<|im_end|>",
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)
# A space in a byte-level tokenizer's tokens.
_SPACE = "\u0120"
# For models without a limit (ALiBi): what they are commonly trained on.
_UNLIMITED_CONTEXT = 2048


@dataclass(frozen=True, eq=False)
class DescribedModel:
    """A base model without its network.

    name: the user's. id: public, never a path. family: transformers' model type. d_model: width of inputs_embeds. bos_ids: what
    the tokenizer writes before a text, or (). stop_ids: ids that end a text or an assistant's turn. kv_shape: of its keys and
    values, None where the configuration does not say it. windowed: for each layer whether it sees a sliding window only.
    """

    name: str
    id: str
    family: str
    tokenizer: Any
    d_model: int
    n_layers: int
    vocab_size: int
    context_length: int
    fingerprint: str
    bos_ids: tuple[int, ...]
    stop_ids: frozenset[int]
    kv_shape: KVShape | None
    windowed: tuple[bool, ...]
    _one_at_a_time: Lock = field(init=False, repr=False, default_factory=Lock)

    @property
    def placement(self) -> PlacementName:
        """Where a soft prompt belongs: after BOS, which models use as an attention sink, if there is one."""
        return "after_bos" if self.bos_ids else "start"

    @property
    def ref(self) -> BaseRef:
        """This model in a soft prompt's metadata."""
        return BaseRef(self.id, self.family, self.d_model, self.n_layers, self.vocab_size, 0.0, self.fingerprint)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS; "<|im_end|>" in it is text, not a marker. Raises BadInput."""
        _check_unicode(text)
        return self._tokenised(text, markers_are_text=True)

    def token_starts(self, text: str) -> list[int]:
        """The first character of each token of `encode(text)`; estimated where the tokenizer does not give it. Raises BadInput."""
        ids, spans = self.encode_spans(text)
        if spans is None:
            return [index * len(text) // len(ids) for index in range(len(ids))]
        return [start for start, _ in spans]

    def encode_spans(self, text: str, *, markup: bool = False) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Token ids as from `encode`, or `encode_markup`, and the characters [start, end) of each; None if the tokenizer does not
        give them. Tokens may share characters. Raises BadInput.
        """
        _check_unicode(text)
        if not self.tokenizer.is_fast:
            return self._tokenised(text, markers_are_text=not markup), None
        with self._one_at_a_time, self._reading_a_text():
            found = self.tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=not markup,
                return_offsets_mapping=True,
                verbose=False,
            )
        ids = [int(i) for i in found["input_ids"]]
        return ids, _untrimmed(found["offset_mapping"], self.tokenizer.convert_ids_to_tokens(ids), len(text))

    def encode_markup(self, text: str) -> list[int]:
        """Token ids of a rendered chat template, its markers as special tokens, without an added BOS. Raises BadInput."""
        _check_unicode(text)
        return self._tokenised(text, markers_are_text=False)

    def without_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        """`ids` without a leading BOS, which chat templates write; where it belongs depends on the soft prompt."""
        count = len(self.bos_ids)
        return tuple(ids[count:] if tuple(ids[:count]) == self.bos_ids else ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens and with unchanged spaces."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """The text of a token within a text, its space included; "" for a special token."""
        # By itself it would begin a text, where some tokenizers drop the space of the first word.
        ids, text = self._word
        return self.decode([*ids, token])[len(text) :]

    @cached_property
    def _word(self) -> tuple[list[int], str]:
        ids = self.encode("a")
        return ids, self.decode(ids)

    def chat_segments(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """A conversation in the model's chat template, as (text, is an assistant's turn with its end marker) pieces.

        messages: {"role", "content"} objects. For `encode_markup`. Raises ModelError where the model has no template, or its
        template refuses the conversation.
        """
        return chat_template.segments(self._render, messages, self.end_markers)

    def chat_opening(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None) -> str:
        """A conversation in the model's chat template, up to where the assistant begins to write. For `encode_markup`.

        options: variables of the template. Raises ModelError where the model has no template, or its template refuses the
        conversation.
        """
        return self._render(messages, True, options)

    def template_reads(self, name: str) -> bool:
        """Whether the model's chat template mentions a variable or a role of this name."""
        return bool(re.search(rf"\b{re.escape(name)}\b", str(getattr(self.tokenizer, "chat_template", None) or "")))

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A finished conversation in the model's chat template. Raises as `chat_opening`."""
        return self._render(messages, False)

    @property
    def end_markers(self) -> list[str]:
        """The markers of the end of a text or a turn, as in rendered templates and between the documents of a corpus."""
        return [self.tokenizer.decode([i]) for i in sorted(self.stop_ids)]

    def fit(self, prompt: Prompt | Mixture) -> Fit:
        """How well `prompt` fits; of a mixture, its component that fits worst."""
        if isinstance(prompt, Mixture):
            return weakest([self.fit(component) for component in prompt.components])
        return self.fit_of([stated_by(prompt)])

    def fit_of(self, parts: Sequence[Stated]) -> Fit:
        """As `fit`, from what a file's header states: of a prompt, or of each of a mixture's components."""
        return weakest([fit(self.ref, part, kv=self.kv_shape, names=(self.name,)) for part in parts])

    def check_fit(self, prompt: Prompt | Mixture, *, force: bool) -> Fit:
        """The fit, for warnings. Raises DoesNotFit where it is `no`, unless the width agrees and `force` is given."""
        fit = self.fit(prompt)
        if fit.kind == "no" and not (fit.forcible and force):
            raise DoesNotFit(
                "the soft prompt does not fit the base model",
                where=prompt.metadata.name,
                got=fit.reason,
                do="give --force to try it all the same" if fit.forcible else "choose a model of its sizes",
            )
        return fit

    def _tokenised(self, text: str, *, markers_are_text: bool) -> list[int]:
        # The flag changes the tokenizer itself, so only one thread may use it.
        with self._one_at_a_time, self._reading_a_text():
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=markers_are_text, verbose=False)
        ids = [int(i) for i in found["input_ids"]]
        if ids and max(ids) >= self.vocab_size:
            raise ModelError(
                "the tokenizer and the weights do not belong together",
                where=self.name,
                expected=f"ids of {self.vocab_size:,} words",
                got=max(ids),
                do="fetch the model again",
            )
        return ids

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        variables = {**(options or {}), "add_generation_prompt": add_generation_prompt}
        return chat_template.rendered(self.tokenizer, messages, variables, where=self.name)

    def _reading_a_text(self) -> AbstractContextManager[None]:
        return reading("the model's tokenizer cannot read the text", self.name)


def _untrimmed(trimmed: Sequence[tuple[int, int]], tokens: Sequence[str], length: int) -> list[tuple[int, int]]:
    """Spans with the spaces that byte-level post-processors with `trim_offsets` (Llama 3's) leave out."""
    spans = []
    before = 0
    for at, ((start, end), token) in enumerate(zip(trimmed, tokens, strict=True)):
        following = trimmed[at + 1][0] if at + 1 < len(trimmed) else length
        start = min(start, max(before, start - (len(token) - len(token.lstrip(_SPACE)))))
        # A token of spaces only loses its end at the beginning of a text, else its start.
        full = end + len(token) - len(token.rstrip(_SPACE)) if token.strip(_SPACE) else start + len(token)
        before = max(end, min(full, following))
        spans.append((start, before))
    return spans


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A command line byte that is not UTF-8, or half a surrogate pair in JSON: tokenizers raise a TypeError.
        raise BadInput("the text is not Unicode", got=ascii(text[error.start : error.start + 10])) from None


def describe(source: ModelSource, path: Path, *, notify: Notify = silent) -> DescribedModel:
    """The model of a .gguf file, without its weights. Raises ModelError, StorageError."""
    file = files.describe(source, path, notify=notify)
    config = read_config(file.folder)
    check_readable(config, where=source.name)
    tokenizer = read_tokenizer(file.folder)
    text = config.get_text_config()
    return DescribedModel(
        name=source.name,
        id=source.id,
        family=str(config.model_type),
        tokenizer=tokenizer,
        d_model=file.d_model,
        n_layers=int(text.num_hidden_layers),
        vocab_size=file.vocab_size,
        context_length=context_length_of(text),
        fingerprint=file.fingerprint,
        bos_ids=bos_ids_of(tokenizer),
        stop_ids=stop_ids_of(tokenizer, file.vocab_size, getattr(text, "eos_token_id", None)),
        kv_shape=kv_shape_of(text),
        windowed=windowed_of(text),
    )


def windowed_of(config: PreTrainedConfig) -> tuple[bool, ...]:
    """For each layer whether it sees a sliding window only."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
    return tuple(kind == "sliding_attention" for kind in kinds)


def kv_shape_of(config: PreTrainedConfig) -> KVShape | None:
    """The shape of the keys and values, the same in every layer; None where configurations of that kind do not say it."""
    # One head for all queries; compressed keys and values; layers of several widths; layers that share theirs.
    unusual = ("multi_query", "kv_lora_rank", "global_head_dim", "per_layer_config", "num_kv_shared_layers")
    heads = getattr(config, "num_attention_heads", None)
    # As a dictionary: the attribute `per_layer_config` is there in any case.
    stated = config.to_dict()
    if not isinstance(heads, int) or any(stated.get(name) for name in unusual):
        return None
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if not isinstance(channels, int) or not isinstance(shared, int):
        return None
    return KVShape(int(config.num_hidden_layers), shared, channels)


def context_length_of(config: PreTrainedConfig) -> int:
    """Positions that the model was trained on, by the names that configurations use."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _UNLIMITED_CONTEXT


def bos_ids_of(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer writes before every text: found by running it, because settings and behaviour disagree."""
    plain = [int(i) for i in tokenizer("a", add_special_tokens=False)["input_ids"]]
    full = [int(i) for i in tokenizer("a")["input_ids"]]
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return tuple(full[:at])
    return ()


def stop_ids_of(tokenizer: Any, vocab_size: int, *configured: Any) -> frozenset[int]:
    """The tokenizer's end of text, its markers of a turn's end, and those of configurations: an id, a list or None each."""
    ids: set[int] = set()
    for ends in (tokenizer.eos_token_id, *configured):
        ids.update(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids.update(special[marker] for marker in _END_MARKERS if marker in special)
    # Some tokenizers have special tokens without an embedding, which no network can produce.
    return frozenset(int(i) for i in ids if 0 <= i < vocab_size)
