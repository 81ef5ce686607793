"""What soft prompts and servers need to know of a base model besides its network: words, sizes, identity.

`BaseModel` adds the network. A runner that reads a .gguf file itself has no network of transformers, and needs no more than this.
"""

from __future__ import annotations

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
from sordino.models.files import ModelSource, Tell
from sordino.models.loading import check_readable, quietly, read_config, read_tokenizer, reading
from sordino.prompts.fit import Fit, fit, weakest
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import BaseRef, Metadata, PlacementName

# What ends a text or a turn, by the models' own names; they count where the tokenizer has them as special tokens.
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
# A model without a limit of its own (ALiBi) is held to what such models were trained on.
_UNLIMITED_CONTEXT = 2048


@dataclass(frozen=True, eq=False)
class DescribedModel:
    """A base model as far as it can be known without its network.

    name: what the user called it. id: its public name, never a path. family: transformers' model type. d_model: width of
    inputs_embeds. bos_ids: what the tokenizer itself writes in front of a text, () if nothing. stop_ids: ids that end a text or an
    assistant's turn.
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
    _one_at_a_time: Lock = field(init=False, repr=False, default_factory=Lock)

    @property
    def placement(self) -> PlacementName:
        """Where a soft prompt belongs: behind BOS, whose position models lean on as an attention sink, if there is one."""
        return "after_bos" if self.bos_ids else "start"

    @property
    def ref(self) -> BaseRef:
        """What a soft prompt's file says about this model."""
        return BaseRef(self.id, self.family, self.d_model, self.n_layers, self.vocab_size, 0.0, self.fingerprint)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, and nothing else: no BOS, and "<|im_end|>" in it is text and no marker. Raises BadInput."""
        _check_unicode(text)
        return self._tokenised(text, markers_are_text=True)

    def token_starts(self, text: str) -> list[int]:
        """Where each token of `encode(text)` begins in the text, in characters; about, where the tokenizer cannot tell.

        Raises BadInput.
        """
        ids, spans = self.encode_spans(text)
        if spans is None:
            return [index * len(text) // len(ids) for index in range(len(ids))]
        return [start for start, _ in spans]

    def encode_spans(self, text: str, *, markup: bool = False) -> tuple[list[int], list[tuple[int, int]] | None]:
        """Token ids as `encode` gives them, or `encode_markup`, and the characters [start, end) that each was read from.

        Tokens may share characters. None for the characters where the tokenizer does not know them. Raises BadInput.
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
        """Token ids of a rendered chat template, whose markers are special tokens. Adds no BOS. Raises BadInput."""
        _check_unicode(text)
        return self._tokenised(text, markers_are_text=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids: without special tokens, its spaces as the tokens have them."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """The text of one token inside of a text, its space included; "" for a special token."""
        # Alone it would begin the text, and tokenizers that mark a text's first word drop its space there.
        ids, text = self._word
        return self.decode([*ids, token])[len(text) :]

    @cached_property
    def _word(self) -> tuple[list[int], str]:
        ids = self.encode("a")
        return ids, self.decode(ids)

    def chat_segments(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """A conversation in the model's chat template, as (text, is an assistant's turn with its end marker) pieces.

        messages: {"role", "content"} objects. Encode the pieces with `encode_markup`. Raises ModelError where the model has
        no template, or its template refuses the conversation.
        """
        return chat_template.segments(self._render, messages, self.end_markers)

    def chat_opening(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation in the model's chat template, up to where the assistant begins to write. For `encode_markup`.

        Raises ModelError where the model has no template, or its template refuses the conversation.
        """
        return self._render(messages, True)

    @property
    def end_markers(self) -> list[str]:
        """What ends a text or a turn, as it is written in rendered templates and between the documents of a corpus."""
        return [self.tokenizer.decode([i]) for i in sorted(self.stop_ids)]

    def fit(self, prompt: Prompt | Mixture) -> Fit:
        """How well `prompt` fits; a mixture as its component that fits worst."""
        if isinstance(prompt, Mixture):
            return weakest([self.fit(component) for component in prompt.components])
        return self.fit_of(prompt.d_model, prompt.metadata)

    def fit_of(self, d_model: int, metadata: Metadata, parts: Sequence[Metadata] = ()) -> Fit:
        """As `fit`, from what the header of a soft prompt's file says. parts: of a mixture, what its components say."""
        return weakest([fit(self.ref, d_model, said, names=(self.name,)) for said in parts or (metadata,)])

    def check_fit(self, prompt: Prompt | Mixture, *, force: bool) -> Fit:
        """The fit, for warnings. Raises DoesNotFit where it is `no`, unless the width agrees and `force` is given."""
        answer = self.fit(prompt)
        if answer.kind == "no" and not (answer.forcible and force):
            raise DoesNotFit(
                "the soft prompt does not fit the base model",
                where=prompt.metadata.name,
                got=answer.reason,
                do="give --force to try all the same" if answer.forcible else "choose a model of its width",
            )
        return answer

    def _tokenised(self, text: str, *, markers_are_text: bool) -> list[int]:
        # The flag is a switch on the tokenizer itself: another thread must not turn it in between.
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

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the model has no chat template",
                where=self.name,
                do="choose an instruction-tuned model, or texts or records of `prompt` and `completion`",
            )
        try:
            with quietly():
                text = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
                )
        # A template is a stranger's program: it divides by zero, it calls itself for ever.
        except Exception as error:
            raise ModelError(
                "the model's chat template refuses the conversation",
                where=self.name,
                got=str(error)[:300] or type(error).__name__,
            ) from error
        return str(text)

    def _reading_a_text(self) -> AbstractContextManager[None]:
        return reading("the model's tokenizer cannot read the text", self.name)


def _untrimmed(trimmed: Sequence[tuple[int, int]], tokens: Sequence[str], length: int) -> list[tuple[int, int]]:
    """Spans with the spaces at their ends, which byte-level post-processors with `trim_offsets` (Llama 3's) leave out."""
    spans = []
    before = 0
    for at, ((start, end), token) in enumerate(zip(trimmed, tokens, strict=True)):
        following = trimmed[at + 1][0] if at + 1 < len(trimmed) else length
        start = min(start, max(before, start - (len(token) - len(token.lstrip(_SPACE)))))
        # Of a token of spaces alone, one at the very beginning of a text loses its end, any other its start.
        full = end + len(token) - len(token.rstrip(_SPACE)) if token.strip(_SPACE) else start + len(token)
        before = max(end, min(full, following))
        spans.append((start, before))
    return spans


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # A byte of the command line that was no UTF-8, or half a pair in JSON: tokenisers refuse it with a TypeError.
        raise BadInput("the text is not Unicode", got=ascii(text[error.start : error.start + 10])) from None


def describe(source: ModelSource, path: Path, *, tell: Tell | None = None) -> DescribedModel:
    """The model of a .gguf file, whose weights are left to others. Raises ModelError, StorageError."""
    file = files.describe(source, path, tell=tell)
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
    )


def context_length_of(config: PreTrainedConfig) -> int:
    """Positions that the model was trained on, by whatever name its configuration has for them."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _UNLIMITED_CONTEXT


def bos_ids_of(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer writes in front of every text: asked of the tokenizer, because settings and behaviour disagree."""
    plain = [int(i) for i in tokenizer("a", add_special_tokens=False)["input_ids"]]
    full = [int(i) for i in tokenizer("a")["input_ids"]]
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return tuple(full[:at])
    return ()


def stop_ids_of(tokenizer: Any, vocab_size: int, *said_ends: Any) -> frozenset[int]:
    """The tokenizer's end of text, its markers of a turn's end, and what configurations say: an id, a list or None each."""
    ids: set[int] = set()
    for said in (tokenizer.eos_token_id, *said_ends):
        ids.update(said if isinstance(said, (list, tuple)) else [] if said is None else [said])
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids.update(special[marker] for marker in _END_MARKERS if marker in special)
    # Some tokenizers have special tokens behind the last embedding, which no network can produce.
    return frozenset(int(i) for i in ids if 0 <= i < vocab_size)
