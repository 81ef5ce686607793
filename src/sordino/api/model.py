"""A base model that writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from sordino.api import checked_prompt, naming_arguments
from sordino.errors import BadInput, ConfigError
from sordino.models.bundled import DEFAULT_MODEL
from sordino.prompts.mixture import StoredPrompt, with_attention
from sordino.settings import from_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sordino.engine.config import Sampling
    from sordino.engine.generate import TextDelta, TextRequest
    from sordino.models.base_model import BaseModel
    from sordino.models.files import Notify
    from sordino.models.suited import SuitedModel
    from sordino.prompts.fit import Fit

Prompts = StoredPrompt | Sequence[StoredPrompt | None] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A frozen base model. Made by `load_model` or `Model.from_transformers`."""

    base: BaseModel

    def __repr__(self) -> str:
        return f"Model({self.base.name!r}, {self.base.device}, {self.base.dtype})"

    @staticmethod
    def from_transformers(network: PreTrainedModel, tokenizer: Any, *, name: str = "") -> Model:
        """A causal language model and its tokenizer that are in memory already.

        The network is frozen: it is put in eval mode, and its parameters lose their gradients. name: what soft prompts call it,
        by default its name on the Hub. Raises ModelError for an architecture that cannot carry a soft prompt.
        """
        from sordino.models.architectures import check_config
        from sordino.models.base_model import from_parts

        name = name or network.name_or_path or str(network.config.model_type)
        check_config(network.config, where=name)
        return Model(from_parts(network, tokenizer, name=name))

    def fit(self, prompt: StoredPrompt) -> Fit:
        """How well a prompt fits: `kind` is "exact", "same family", "unknown" or "no"; `reason` says why."""
        return self.base.fit(prompt)

    @overload
    def generate(
        self, text: str, prompt: StoredPrompt | None = None, *, seed: int = 0, force: bool = False, **how: Any
    ) -> str: ...

    @overload
    def generate(
        self,
        text: str | Sequence[str],
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] = 0,
        force: bool = False,
        **how: Any,
    ) -> list[str]: ...

    @naming_arguments
    def generate(
        self,
        text: str | Sequence[str],
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] = 0,
        force: bool = False,
        **how: Any,
    ) -> str | list[str]:
        """The continuation of a text, with a soft prompt, a mixture, or neither.

        Lists of texts, prompts or seeds are one batch and give a list; what is not a list serves every row. What is written
        depends on a row's own text, prompt and seed, never on its batch. how: the fields of `Sampling`, for instance max_tokens=60,
        temperature=0; and, in place of the prompts' own, hold (tokens of text, or "off") and strength (0.25 to 4), for a mixture's
        components one value or a list. force: run a prompt of the right width that was made for another model.
        Raises ConfigError, DoesNotFit, OutOfMemory.
        """
        from sordino.engine.generate import complete

        continued = complete(self.base, *self._requests(text, prompt, seed, how, force=force))
        return continued if _is_batch(text, prompt, seed) else continued[0]

    @naming_arguments
    def stream(
        self,
        text: str | Sequence[str],
        prompt: Prompts = None,
        *,
        seed: int | Sequence[int] = 0,
        force: bool = False,
        **how: Any,
    ) -> Iterator[TextDelta]:
        """As `generate`, a piece of text at a time.

        A piece has `request` (which row it continues), `text`, and `finish`: "stop" or "length" on a row's last piece, else None.
        """
        from sordino.engine.generate import generate

        return generate(self.base, *self._requests(text, prompt, seed, how, force=force))

    def _requests(
        self,
        text: str | Sequence[str],
        prompt: Prompts,
        seed: int | Sequence[int],
        how: Mapping[str, Any],
        *,
        force: bool,
    ) -> tuple[list[TextRequest], Sampling]:
        """Raises as `generate`."""
        from sordino.engine.config import Sampling
        from sordino.engine.generate import TextRequest

        attention = how.get("hold"), how.get("strength")
        fields = {name: value for name, value in how.items() if name not in ("hold", "strength")}
        if "stop" in fields:
            # One text is a sequence too, of its characters.
            fields["stop"] = tuple(_as_list(fields["stop"]))
        sampling = from_json(Sampling, fields)
        texts, prompts, seeds = _as_list(text), _as_list(prompt), _as_list(seed)
        lengths = {len(values) for values in (texts, prompts, seeds)} - {1}
        if len(lengths) > 1:
            raise BadInput(
                "lists of different lengths",
                where="generate",
                expected="as many texts as prompts and seeds, or one for all",
                got=f"{len(texts)} texts, {len(prompts)} prompts, {len(seeds)} seeds",
            )
        for each in texts:
            if not isinstance(each, str):
                raise BadInput("wrong type", where="text", expected="a string, or a list of them", got=repr(each)[:80])
        if not all(type(each) is int for each in seeds):
            raise ConfigError("out of range", where="seed", expected="a whole number", got=repr(seed))
        rows = next(iter(lengths), 1)
        for each in prompts:
            if each is not None:
                self.base.check_fit(checked_prompt(each), force=force)
        if not any(prompts):
            # Refuses what has nothing to act on.
            with_attention(None, *attention)
        prompts = [each and with_attention(each, *attention) for each in prompts]
        texts, prompts, seeds = (values * rows if len(values) == 1 else values for values in (texts, prompts, seeds))
        return [TextRequest(*row) for row in zip(texts, prompts, seeds, strict=True)], sampling


@naming_arguments
def load_model(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str | None = None,
    device: str | None = None,
    quantise: str | None = None,
    offload: bool = False,
    notify: Notify | None = None,
) -> Model:
    """A base model by bundled name, folder, .gguf file or Hub id, fetched and converted first where that is needed.

    dtype: "float32", "bfloat16" or "float16"; by default float32, on a GPU bfloat16 where it has it. To train on a processor
    that has bfloat16, choose it: a step takes less than half the time. device: "cpu", "cuda", "cuda:N" or "mps"; by default a
    GPU where there is one. quantise: "int8", "nf4" or "int4", for linear layers in 8 or 4 bits.
    offload: leave them on the disk. notify: called with a line before each slow step.
    Raises ModelError, ConfigError, MissingExtra, StorageError, OutOfMemory.
    """
    from sordino.models import base_model, files

    if offload and quantise:
        raise ConfigError("layers that are packed are in memory", where="offload", got=f"quantise={quantise!r} too")
    quantise = "offload" if offload else quantise
    return Model(base_model.load(name, dtype=dtype, device=device, quantise=quantise, notify=notify or files.silent))


def suited_models() -> list[SuitedModel]:
    """The base models that can be trained on in this machine's memory: the bundled ones, then the smallest first. None is loaded.

    Each has `name` and `quantise` for `load_model`: on a GPU, what is too large as it is comes in 4 bits. `print` shows what it
    needs. The memory is estimated; `load_model` measures the weights. Other models of the Hub can be loaded by their id.
    """
    from sordino.models import suited

    return suited.suited_models()


def _as_list(value: Any) -> list[Any]:
    return list(value) if _is_batch(value) else [value]


def _is_batch(*given: Any) -> bool:
    return any(isinstance(value, Sequence) and not isinstance(value, str) for value in given)
