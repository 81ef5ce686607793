"""A base model without its network: tokenizer, sizes, identity.

`BaseModel` adds the network. A runner that reads a .gguf file itself has no transformers network and needs only this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from sordino import __version__
from sordino.errors import BadInput, ModelError
from sordino.models import chat_template, files
from sordino.models.cache import kept
from sordino.models.files import ModelSource, Notify, silent
from sordino.models.loading import (
    check_readable,
    is_plain,
    read_config,
    read_generation_config,
    read_tokenizer,
    reading,
)
from sordino.models.model_facts import (
    EncoderDecoder,
    bos_ids_of,
    context_length_of,
    encoder_decoder_of,
    input_config,
    kv_shape_of,
    rope_switch_of,
    stop_ids_of,
    windowed_of,
)
from sordino.models.weight_formats import Format
from sordino.prompts.encoder_decoders import OnlyDecoders, refused
from sordino.prompts.fit import Fit, Stated, checked, fit, stated_by, weakest
from sordino.prompts.kv_prompt import KVShape
from sordino.prompts.mixture import Mixture
from sordino.prompts.prompt import Prompt
from sordino.prompts.soft_prompt import BaseRef, PlacementName

# A space in a byte-level tokenizer's tokens.
_SPACE = "\u0120"


@dataclass(frozen=True, eq=False)
class DescribedModel:
    """A base model without its network.

    name: the user's. id: public, never a path. family: transformers' model type. d_model: width of inputs_embeds. bos_ids: what
    the tokenizer writes before a text, or (). stop_ids: ids that end a text or an assistant's turn. kv_shape: of its keys and
    values, None where the configuration does not say it. windowed: for each layer whether it sees a sliding window only.
    encoder_decoder: None for a decoder.
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
    encoder_decoder: EncoderDecoder | None = field(default=None, kw_only=True)
    # The format of its linear layers, where they are packed, or "offload".
    quantise: Format | None = field(default=None, kw_only=True)
    _one_at_a_time: Lock = field(init=False, repr=False, default_factory=Lock)

    @property
    def placement(self) -> PlacementName:
        """Where a soft prompt belongs: after BOS, which decoders use as an attention sink, if there is one."""
        return "after_bos" if self.bos_ids and self.encoder_decoder is None else "start"

    def check_decoder(self, what: OnlyDecoders) -> None:
        """Raise ConfigError where this is an encoder-decoder, with which `what` is not possible."""
        if self.encoder_decoder is not None:
            raise refused(what, self.name)

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
        found = self._token_texts.get(token)
        if found is None:
            ids, text = self._word
            found = self._token_texts[token] = self.decode([*ids, token])[len(text) :]
        return found

    @cached_property
    def _token_texts(self) -> dict[int, str]:
        return {}

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
        """As `fit.checked`."""
        return checked(self.fit(prompt), prompt.metadata.name, force=force)

    def _tokenised(self, text: str, *, markers_are_text: bool) -> list[int]:
        # The flag changes the tokenizer itself, so only one thread may use it.
        with self._one_at_a_time, self._reading_a_text():
            found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=markers_are_text, verbose=False)
        ids = [int(i) for i in found["input_ids"]]
        if ids and max(ids) >= self.vocab_size:
            raise ModelError(
                "the tokenizer and the weights do not belong together",
                where=self.name,
                expected=f"ids of {self.vocab_size:,} tokens",
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
    state = [file.fingerprint, __version__, version("transformers")]
    # With a configuration transformers imports the model's code, which takes longer than all the rest.
    stated = kept(f"stated/{file.fingerprint[:32]}.json", state, lambda: _stated(file.folder, source.name))
    tokenizer = read_tokenizer(file.folder, plain=stated["plain_tokenizer"])
    return DescribedModel(
        name=source.name,
        id=source.id,
        family=stated["family"],
        tokenizer=tokenizer,
        d_model=file.d_model,
        n_layers=stated["n_layers"],
        vocab_size=file.vocab_size,
        context_length=stated["context_length"],
        fingerprint=file.fingerprint,
        bos_ids=bos_ids_of(tokenizer),
        stop_ids=stop_ids_of(tokenizer, file.vocab_size, stated["ends"]),
        kv_shape=stated["kv_shape"] and KVShape(*stated["kv_shape"]),
        windowed=tuple(stated["windowed"]),
    )


def _stated(folder: Path, name: str) -> dict[str, Any]:
    """What the configuration of a converted folder says, and which class its tokenizer is of. Raises ModelError."""
    config = read_config(folder)
    check_readable(config, where=name)
    text = config.get_text_config()
    kv_shape = kv_shape_of(text)
    return {
        "family": str(config.model_type),
        "n_layers": int(text.num_hidden_layers),
        "context_length": context_length_of(text),
        "ends": getattr(text, "eos_token_id", None),
        "kv_shape": kv_shape and list(astuple(kv_shape)),
        "windowed": list(windowed_of(text)),
        "plain_tokenizer": is_plain(read_tokenizer(folder)),
    }


def describe_folder(source: ModelSource, *, notify: Notify = silent) -> tuple[DescribedModel, Path]:
    """A model without its weights, and its folder for programs that read transformers' folders: of safetensors, made first where
    the source is something else. Raises as `files.prepare`."""
    from sordino.models.network_size import empty_network

    prepared = files.prepare(source, notify=notify)
    config = read_config(prepared.folder)
    check_readable(config, where=source.name)
    network = empty_network(config, where=source.name)
    tokenizer = read_tokenizer(prepared.folder)
    facts = facts_of(network, read_generation_config(prepared.folder), tokenizer)
    model = DescribedModel(source.name, source.id, tokenizer=tokenizer, fingerprint=prepared.fingerprint, **facts)
    return model, prepared.folder


def facts_of(network: Any, generation: Any, tokenizer: Any) -> dict[str, Any]:
    """What a network of transformers says of itself, with weights or without, as arguments of DescribedModel. generation: its
    generation settings, or None."""
    config = input_config(network.config)
    vocab_size, d_model = map(int, network.get_input_embeddings().weight.shape)
    two_sided = network.config.is_encoder_decoder
    return {
        "family": str(network.config.model_type),
        "d_model": d_model,
        "n_layers": int(config.num_hidden_layers),
        "vocab_size": vocab_size,
        "context_length": int(min(context_length_of(config), rope_switch_of(config))),
        "bos_ids": bos_ids_of(tokenizer),
        "stop_ids": stop_ids_of(
            tokenizer, vocab_size, network.config.eos_token_id, getattr(generation, "eos_token_id", None)
        ),
        "kv_shape": None if two_sided else kv_shape_of(config),
        "windowed": () if two_sided else windowed_of(config),
        "encoder_decoder": encoder_decoder_of(network.config, generation, tokenizer),
    }
