"""The base model, soft prompts and texts that a command is given: their options, and loading them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import click

from sordino import formats
from sordino.cli.console import err, is_interactive, note, one_line, warn
from sordino.cli.options import (
    Decorator,
    attention_options,
    force_option,
    json_option,
    library_option,
    naming_flags,
    option_group,
    paths_option,
    setting_options,
    stacked,
)
from sordino.errors import ConfigError
from sordino.library.library import Library
from sordino.library.names import kind_of_name, without_ending
from sordino.models.bundled import DEFAULT_MODEL
from sordino.models.names import Dtype, ModelSource
from sordino.prompts.attention import Hold
from sordino.prompts.encoder_decoders import OnlyDecoders
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.mixture import StoredPrompt, components_of, with_attention
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.settings import setting

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel
    from sordino.models.description import DescribedModel
    from sordino.texts.heldout import HeldoutTexts

P = TypeVar("P", bound=StoredPrompt)


@dataclass(frozen=True)
class ModelChoice:
    """The base model as the user named it, "" where none was."""

    model: str = setting(
        "",
        "The base model: smollm2 (bundled), a folder, a .gguf file, or a Hugging Face Hub id.",
        unit="MODEL",
        short="-m",
    )
    device: str | None = setting(
        None, "cpu, cuda, cuda:N or mps.", shown="a GPU where there is one, else cpu", unit="DEVICE"
    )
    dtype: Dtype | None = setting(
        None,
        "Number type of the base model; soft prompts are always float32.",
        shown="bfloat16 on an NVIDIA GPU that has it and, for training or packed weights, on a CPU that has it; else float32",
    )
    quantise: Literal["int8", "nf4", "int4"] | None = setting(
        None,
        "Hold the linear layers of the base model in 8 or 4 bits: less memory, and faster writing on a CPU. nf4 needs "
        "pip install 'sordino[quantise]'.",
        shown="not quantised",
    )
    offload: bool = setting(
        False,
        "Leave the linear layers of the base model on the disk and read each when it is needed: for models that do not "
        "fit into memory. Slow.",
    )

    @property
    def layers(self) -> str | None:
        """What is done with the linear layers: --quantise, or "offload". Raises ConfigError for both."""
        if self.offload and self.quantise:
            raise ConfigError(
                "quantised layers are kept in memory",
                where="--offload",
                got="--quantise too",
                do="leave one of them out",
            )
        return "offload" if self.offload else self.quantise

    def load(self, *, ask: bool = True, only_decoders: OnlyDecoders | None = None) -> BaseModel:
        return loaded_model(
            self.model, self.dtype, self.device, quantise=self.layers, ask=ask, only_decoders=only_decoders
        )

    @property
    def to_train(self) -> ModelChoice:
        """In the number type to train in. Raises ConfigError."""
        from sordino.models.base_model import training_dtype

        return replace(self, dtype=training_dtype(self.dtype, self.device))

    @property
    def only_torch(self) -> str:
        """What of this llama.cpp cannot do, "" where nothing."""
        given = [self.device, self.dtype, self.layers]
        return "--device, --dtype, --quantise and --offload are for PyTorch" if any(given) else ""

    def describe(self, runner: str, only_torch: str) -> tuple[DescribedModel, Path | None]:
        """The model, and its file where llama.cpp is to run it; else it is loaded for PyTorch. As `build.llama_cpp_file`."""
        from sordino.models import files

        source = files.resolve(self.model)
        with err.status(f"Loading {one_line(self.model)} ..."):
            from sordino.engine.runners.build import llama_cpp_file
            from sordino.models.description import describe

            path = llama_cpp_file(self.model, runner, only_torch=self.only_torch or only_torch, notify=note)
            if path is not None:
                return describe(source, path, notify=note), path
        return self.load(), None


def base_model_options(default: str = DEFAULT_MODEL) -> Decorator:
    """`model: ModelChoice`."""
    return setting_options(ModelChoice, given_as="model", model=default)


def generate_command(text: str, path: Path, model: str) -> str:
    """The command that continues a text with the new soft prompt, for people to copy."""
    flag = "" if model == DEFAULT_MODEL else f" --model {quote(one_line(model))}"
    return f'sordino generate "{text}"{flag} --soft-prompt {quote(str(path))}'


def named_model_option() -> Decorator:
    """`model: ModelChoice`, for what runs on the CPU in any case, or chooses by itself."""
    return setting_options(ModelChoice, "model", given_as="model")


@dataclass(frozen=True)
class PromptChoice:
    """Soft prompts as the user named them: by their names in the library, or as files. force: also one for another model.

    hold, strength: in place of those of the files; for mixtures, one for each component or for all.
    """

    names: tuple[str, ...]
    library: Library
    force: bool = False
    hold: Hold | list[Hold] | None = None
    strength: float | list[float] | None = None

    def load(self) -> dict[str, SoftPrompt]:
        """Soft prompts by a short label each, in the order given. Raises BadInput, for a mixture too.

        Done before the base model is loaded: a wrong name should not cost seconds.
        """
        return self._read(formats.read)

    def load_single(self) -> dict[str, SinglePrompt]:
        """As `load`, KV prompts too."""
        return self._read(formats.read_single)

    def load_any(self) -> dict[str, StoredPrompt]:
        """As `load_single`, mixtures too."""
        return self._read(formats.read_any)

    def _read(self, read: Callable[[Path], P]) -> dict[str, P]:
        """With the hold and strength that were given. Raises ConfigError."""
        prompts = {label: read(path) for label, path in self._paths().items()}
        with naming_flags():
            if not prompts:
                with_attention(None, self.hold, self.strength)
            attended = {label: with_attention(prompt, self.hold, self.strength) for label, prompt in prompts.items()}
        return cast(dict[str, P], attended)

    def _paths(self) -> dict[str, Path]:
        if len(set(self.names)) < len(self.names):
            raise ConfigError("a soft prompt was given twice", got=", ".join(self.names))
        files = [Path(name) for name in self.names]
        labels = [one_line(without_ending(file.name) if kind_of_name(file.name) else file.stem) for file in files]
        if len(set(labels)) < len(labels):
            # Numbers, not paths: labels are written into mixtures, which are shared.
            labels = [f"{label} ({number})" for number, label in enumerate(labels, start=1)]
        return {label: self.library.resolve(name) for label, name in zip(labels, self.names, strict=True)}

    def load_model(
        self,
        model: ModelChoice,
        prompts: Mapping[str, StoredPrompt],
        *,
        ask: bool = True,
        only_decoders: OnlyDecoders | None = None,
    ) -> BaseModel:
        """The base model that these are for. Raises DoesNotFit: for other sizes than the model's before it is loaded."""
        from sordino.models.sizes import check_sizes

        check_sizes(model.model, prompts.values())
        base = model.load(ask=ask, only_decoders=only_decoders)
        self.check(base, prompts)
        return base

    def check(self, base: DescribedModel, prompts: Mapping[str, StoredPrompt]) -> None:
        """Warn of soft prompts, and mixtures with one, that may not be for this model. Raises DoesNotFit for those that are not."""
        for label, prompt in prompts.items():
            fits = [base.check_fit(part, force=self.force) for part in components_of(prompt)]
            for reason in dict.fromkeys(fit.reason for fit in fits if fit.kind in ("unknown", "no")):
                warn(f"{label}: {reason}")


def prompt_options(names: Decorator | None = None) -> Decorator:
    """`prompts: PromptChoice`. names: the argument or option `names`; by default a PROMPT or several."""
    given = names or click.argument("names", metavar="PROMPT...", nargs=-1, required=True)
    return option_group(
        "prompts", _prompt_choice, given, *attention_options("[default: the file's]"), force_option(), library_option()
    )


def measured_options(names: Decorator | None = None) -> Decorator:
    """`prompts: PromptChoice, model: ModelChoice, as_json: bool`: what commands have that run soft prompts."""
    return stacked(prompt_options(names), base_model_options(), json_option())


def _prompt_choice(names: str | tuple[str, ...] | None, **given: Any) -> PromptChoice:
    several = names if isinstance(names, tuple) else (names,) if names else ()
    return PromptChoice(several, **given)


@dataclass(frozen=True)
class TextChoice:
    """Texts as the user named them. training: what soft prompts were trained on, or are chosen by. off_domain: in another voice.
    instructions: to compare with.
    """

    heldout: tuple[Path, ...] = ()
    training: tuple[Path, ...] = ()
    off_domain: tuple[Path, ...] = ()
    instructions: tuple[str, ...] = ()
    speaker: str | None = None

    def read(self, *, apart: bool = False) -> HeldoutTexts:
        """Read them, and print what was found. apart: each held-out path is a set of its own. Raises DataError, BadInput."""
        from sordino.texts.heldout import read_heldout

        texts = read_heldout(self.heldout, self.training, speaker=self.speaker, apart=apart)
        note(*texts.notes)
        warn(*texts.overlaps)
        return texts


def text_options(*options: Decorator) -> Decorator:
    """`texts: TextChoice`, of options that are called as its fields, with --speaker."""
    speaker = click.option(
        "--speaker", metavar="NAME", help="In chat logs: whose turns are measured.  [default: everybody but the user]"
    )
    return option_group("texts", TextChoice, *options, speaker)


def heldout_option(help: str, *, flag: str = "--heldout", required: bool = False) -> Decorator:
    """`heldout: tuple[Path, ...]`."""
    return paths_option(flag, "heldout", help, required=required)


def loaded_model(
    model: str,
    dtype: str | None,
    device: str | None,
    *,
    quantise: str | None = None,
    ask: bool = True,
    only_decoders: OnlyDecoders | None = None,
) -> BaseModel:
    """The base model, loaded under a status line. ask: confirm the conversion of a .gguf file first, on a terminal.
    only_decoders: what it is for, where encoder-decoders cannot do it.

    Its name is looked up before anything is imported that takes seconds.
    """
    from sordino.models import files

    source = files.resolve(model)
    if ask:
        _ask_to_convert(source)
    with err.status(f"Loading {one_line(model)} ..."):
        # Importing it, too, takes seconds.
        from sordino.models import base_model

        base = base_model.load(
            model, dtype=dtype, device=device, quantise=quantise, only_decoders=only_decoders, notify=note
        )
    from sordino.forward.nll import head_of
    from sordino.forward.prefix import packable

    if not packable(base.network) and base.encoder_decoder is None:
        # Tries it.
        head_of(base.network)
        warn(
            f"{base.family} models are not among the tested ones: a trial run was right, but each row holds only one text"
        )
    return base


def _ask_to_convert(source: ModelSource) -> None:
    from sordino.models import files

    needed = files.conversion_of(source)
    if needed is None:
        return
    err.print(
        f"{one_line(source.name)} is quantised, and PyTorch runs it as float32: {needed.disk / 1e9:.1f} GB on the disk, "
        f"as much memory in every run, and {needed.memory / 1e9:.1f} GB of memory during the conversion."
    )
    if is_interactive():
        click.confirm("Convert it?", default=True, abort=True, err=True)
