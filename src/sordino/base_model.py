"""A base model: a frozen network, its tokenizer, and what soft prompts need to know about both.

Shape key: D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sordino import chat_template, model_files
from sordino.architectures import check_config
from sordino.errors import BadInput, ConfigError, DoesNotFit, ModelError
from sordino.fit import Fit as Fit
from sordino.fit import fit as fit
from sordino.model_files import Tell
from sordino.soft_prompt import BaseRef, Metadata, Placement, SoftPrompt
from sordino.transformers_seam import quietly, read_config, read_network, read_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
# A model without a limit of its own (ALiBi) is held to what such models were trained on.
_UNLIMITED_CONTEXT = 2048
_RMS_ROWS = 8192


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A frozen network and its tokenizer. Made by `load` or `from_parts`.

    name: what the user called it. id: its public name, never a path. family: transformers' model type. network: eval mode,
    no parameter asks for gradients. d_model: width of inputs_embeds. embedding_rms: of all elements of the input embeddings as
    inputs_embeds, after Gemma's sqrt(d). bos_ids: what the tokenizer itself writes in front of a text, () if nothing.
    stop_ids: ids that end a text or an assistant's turn.
    """

    name: str
    id: str
    family: str
    network: PreTrainedModel
    tokenizer: Any
    d_model: int
    n_layers: int
    vocab_size: int
    context_length: int
    embedding_rms: float
    fingerprint: str
    bos_ids: tuple[int, ...]
    stop_ids: frozenset[int]
    device: torch.device
    dtype: torch.dtype

    @property
    def placement(self) -> Placement:
        """Where a soft prompt belongs: behind BOS, whose position models lean on as an attention sink, if there is one."""
        return "after_bos" if self.bos_ids else "start"

    @property
    def ref(self) -> BaseRef:
        """What a soft prompt's file says about this model."""
        return BaseRef(
            self.id, self.family, self.d_model, self.n_layers, self.vocab_size, self.embedding_rms, self.fingerprint
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, and nothing else: no BOS, and "<|im_end|>" in it is text and no marker. Raises BadInput."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            # A byte of the command line that was no UTF-8, or half a pair in JSON: tokenisers refuse it with a TypeError.
            raise BadInput("the text is not Unicode", got=ascii(text[error.start : error.start + 10])) from None
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        return [int(i) for i in ids]

    def encode_markup(self, text: str) -> list[int]:
        """Token ids of a rendered chat template, whose markers are special tokens. Adds no BOS."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)["input_ids"]
        return [int(i) for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids: without special tokens, its spaces as the tokens have them."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def embed(self, ids: Tensor) -> Tensor:
        """inputs_embeds [..., D], in the model's dtype, as the network itself would compute them from `ids` [...]."""
        embeddings = self.network.get_input_embeddings()
        return cast(Tensor, embeddings(ids))

    def chat_segments(self, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
        """A conversation in the model's chat template, as (text, is an assistant's turn with its end marker) pieces.

        messages: {"role", "content"} objects. Encode the pieces with `encode_markup`. Raises ModelError where the model has
        no template, or its template refuses the conversation.
        """
        return chat_template.segments(
            self._render, messages, [self.tokenizer.decode([i]) for i in sorted(self.stop_ids)]
        )

    def chat_opening(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation in the model's chat template, up to where the assistant begins to write. For `encode_markup`.

        Raises ModelError where the model has no template, or its template refuses the conversation.
        """
        return self._render(messages, True)

    def fit(self, prompt: SoftPrompt) -> Fit:
        """How well `prompt` fits."""
        return self.fit_of(prompt.d_model, prompt.metadata)

    def fit_of(self, d_model: int, metadata: Metadata) -> Fit:
        """As `fit`, from what the header of a soft prompt's file says."""
        return fit(self.ref, d_model, metadata, names=(self.name,))

    def check_fit(self, prompt: SoftPrompt, *, force: bool) -> Fit:
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

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the model has no chat template",
                where=self.name,
                do="choose an instruction-tuned model, or data that is no chat",
            )
        from jinja2 import TemplateError

        try:
            with quietly():
                text = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
                )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            raise ModelError(
                "the model's chat template refuses the conversation", where=self.name, got=str(error)
            ) from error
        return str(text)


def load(
    name: str = "smollm2", *, dtype: str | None = None, device: str | None = None, tell: Tell | None = None
) -> BaseModel:
    """Load a base model by bundled name, folder, .gguf file or hub id; fetched and converted first where that is needed.

    dtype: "float32", "bfloat16" or "float16"; by default float32, on CUDA bfloat16 where the GPU has it. device: "cpu", "cuda",
    "cuda:N" or "mps"; by default a GPU where there is one. tell: gets a line before each thing that takes long.
    Raises ModelError, ConfigError (dtype, device), StorageError, OutOfMemory.
    """
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    source = model_files.resolve(name)
    prepared = model_files.prepare(source, tell=tell)
    check_config(read_config(prepared.folder), where=name)
    tokenizer = read_tokenizer(prepared.folder)
    network = read_network(prepared.folder, dtype=number, device=place)
    return from_parts(network, tokenizer, name=name, model_id=source.id, fingerprint=prepared.fingerprint)


def from_parts(
    network: PreTrainedModel, tokenizer: Any, *, name: str, model_id: str = "", fingerprint: str = ""
) -> BaseModel:
    """A base model of a network and a tokenizer that are in memory already. The network is frozen and put in eval mode."""
    network.eval().requires_grad_(False)
    config = network.config.get_text_config()
    weight_VD = cast(Tensor, network.get_input_embeddings().weight)
    return BaseModel(
        name=name,
        id=model_id or name,
        family=str(network.config.model_type),
        network=network,
        tokenizer=tokenizer,
        d_model=int(weight_VD.shape[1]),
        n_layers=int(config.num_hidden_layers),
        vocab_size=int(weight_VD.shape[0]),
        context_length=_context_length(config),
        embedding_rms=_embedding_rms(network, int(weight_VD.shape[0])),
        fingerprint=fingerprint,
        bos_ids=_bos_ids(tokenizer),
        stop_ids=_stop_ids(network, tokenizer, int(weight_VD.shape[0])),
        device=weight_VD.device,
        dtype=weight_VD.dtype,
    )


def choose_device(said: str | None) -> torch.device:
    """The device a flag means; None means a GPU where there is one. Raises ConfigError where it is unknown or not there."""
    if said is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    kind, _, number = said.partition(":")
    if (
        kind not in ("cpu", "cuda", "mps")
        or (number and not (kind == "cuda" and number.isdecimal()))
        or said.endswith(":")
    ):
        raise ConfigError("unknown device", where="--device", expected="cpu, cuda, cuda:N or mps", got=said)
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if int(number or 0) >= there[kind]:
        raise ConfigError(
            "this machine, or the torch installed on it, has no such device",
            where="--device",
            expected=" or ".join(k for k, count in there.items() if count),
            got=said,
            do="leave the flag out, or see `sordino doctor`",
        )
    return torch.device(said)


def choose_dtype(said: str | None, device: torch.device) -> torch.dtype:
    """The number type a flag means; None means what suits the device. Raises ConfigError."""
    if said is None:
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if said not in DTYPES:
        raise ConfigError("unknown number type", where="--dtype", expected=", ".join(DTYPES), got=said)
    return DTYPES[said]


def _context_length(config: PreTrainedConfig) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _UNLIMITED_CONTEXT


def _embedding_rms(network: PreTrainedModel, vocab_size: int) -> float:
    """Root mean square over all elements of inputs_embeds of the whole vocabulary, a few rows at a time."""
    embeddings = network.get_input_embeddings()
    total, count = 0.0, 0
    with torch.no_grad():
        for begin in range(0, vocab_size, _RMS_ROWS):
            rows = torch.arange(begin, min(begin + _RMS_ROWS, vocab_size), device=network.device)
            values = embeddings(rows).float()
            total += torch.linalg.vector_norm(values, dtype=torch.float32).item() ** 2
            count += values.numel()
    return float((total / count) ** 0.5)


def _bos_ids(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer writes in front of every text: asked of the tokenizer, because settings and behaviour disagree."""
    plain = [int(i) for i in tokenizer("a", add_special_tokens=False)["input_ids"]]
    full = [int(i) for i in tokenizer("a")["input_ids"]]
    for at in range(len(full) - len(plain) + 1):
        if full[at : at + len(plain)] == plain:
            return tuple(full[:at])
    return ()


def _stop_ids(network: PreTrainedModel, tokenizer: Any, vocab_size: int) -> frozenset[int]:
    ids: set[int] = set()
    for said in (
        network.config.eos_token_id,
        getattr(network.generation_config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        ids.update(said if isinstance(said, (list, tuple)) else [] if said is None else [said])
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids.update(special[marker] for marker in _END_MARKERS if marker in special)
    # Some tokenizers have special tokens behind the last embedding, which no network can produce.
    return frozenset(int(i) for i in ids if 0 <= i < vocab_size)
