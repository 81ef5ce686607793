"""The settings of a training run, the one source of its options, of the page's form and of their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sordino.errors import ConfigError
from sordino.models.context import check_context
from sordino.prompts.attention import MOST_HOLD
from sordino.prompts.encoder_decoders import OnlyDecoders
from sordino.prompts.soft_prompt import MAX_TOKENS, Metadata, PlacementName
from sordino.settings import check_settings, from_json, seed_setting, setting
from sordino.texts.pairs import Objective

Method = Literal["plain", "residual"]
Kind = Literal["embedding", "kv"]
Measure = Literal["quick", "full", "none"]
# The default learning rate of each kind.
RATES: Mapping[Kind, float] = {"embedding": 0.25, "kv": 0.1}
ADAFACTOR_RATE = 0.3
# The values of runs that were stored before these settings existed.
_BEFORE = {
    "kind": "embedding", "hold": 0, "context": 0.0, "context_tokens": 1024, "answers": 0.0, "objective": "prefix-lm",
    "optimiser": "adam",
}  # fmt: skip


def stored_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings as stored, whichever version stored them."""
    return _BEFORE | dict(values)


@dataclass(frozen=True)
class ReadingConfig:
    """How texts are read."""

    speaker: str | None = setting(
        None,
        "In chat logs: whose turns to learn.",
        shown="everybody but the user",
        unit="NAME",
        label="In chat logs: whose turns",
    )
    most_text: int = setting(
        32,
        "Use at most this many million characters of text; if there are more, a sample drawn by the seed.",
        low=1,
        high=1_000_000,
        unit="N",
        offered=False,
    )

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TextPaths:
    """Where a run's texts are. heldout: empty to hold out a part of `data`. speaker, most_text: as in `ReadingConfig`."""

    data: tuple[Path, ...]
    heldout: tuple[Path, ...] = ()
    speaker: str | None = None
    most_text: int = ReadingConfig.most_text


@dataclass(frozen=True)
class Loading:
    """How a run's base model is loaded: arguments of `base_model.load`, which chooses where they are None."""

    device: str | None = None
    dtype: str | None = None
    quantise: str | None = None

    @staticmethod
    def of(stored: Mapping[str, Any]) -> Loading:
        """From what a run's folder says. Raises KeyError."""
        # Older versions do not write `quantise`.
        return Loading(stored["device"], stored["dtype"], stored.get("quantise"))


@dataclass(frozen=True)
class Description:
    """What a file says about itself, besides what is known of its training."""

    author: str = setting("", "Who made it.", label="Author")
    description: str = setting("", "What it does.", label="Description")
    licence: str = setting("", "Its licence, for instance CC-BY-4.0.", label="Licence")
    tags: str = setting("", "Words to find it by, with commas.", label="Tags, with commas")
    rating: Literal["", "general", "mature", "explicit"] = setting("", "Who it is for.", label="Rating")
    no_samples: bool = setting(False, "Keep sample texts out of the file.", label="Keep samples out of the file")

    def __post_init__(self) -> None:
        check_settings(self)

    def metadata(self, name: str) -> Metadata:
        tags = tuple(tag.strip() for tag in self.tags.split(",") if tag.strip())
        return Metadata(
            name=name,
            author=self.author,
            description=self.description,
            licence=self.licence,
            tags=tags,
            rating=self.rating,
        )


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. Raises ConfigError for a value out of range."""

    kind: Kind = setting(
        "embedding",
        "embedding: a matrix, for every program; kv: keys and values for every layer, stronger, for Sordino and PEFT.",
        label="Kind",
    )
    tokens: int = setting(20, "Virtual tokens.", low=1, high=MAX_TOKENS, label="Virtual tokens")
    steps: int = setting(
        300,
        "Optimiser steps.",
        low=1,
        high=10_000_000,
        shown="as many as suit the texts and fit into about 5 minutes, 300 at most",
        label="Steps",
    )
    batch: int = setting(4, "Examples per step.", low=1, high=100_000, label="Examples per step")
    row_tokens: int = setting(
        128,
        "Longest example, in tokens; longer texts are cut into several.",
        low=2,
        high=1_000_000,
        label="Longest example, tokens",
    )
    # Adam moves a coordinate by about lr a step, so the unit makes one value right for models of any embedding scale.
    # None until __post_init__, which knows the kind.
    lr: float = setting(
        cast("float", None),
        "Learning rate, in units of the model's embedding RMS; of a KV prompt, of the RMS of each layer's keys and values.",
        low=1e-6,
        high=100,
        shown="0.25; 0.1 for a KV prompt; 0.3 with Adafactor",
        label="Learning rate (embedding RMS)",
    )
    hold: int = setting(
        128,
        "Tokens of text from which the prompt's share of attention is held, in training and in the file; 0 or off: not held.",
        low=0,
        high=MOST_HOLD,
        zero="off",
        label="Hold the prompt's attention from this many tokens on",
    )
    context: float = setting(
        0.5,
        "Share of the steps with other text between prompt and rows, so that the prompt does not fade; 0 is off.",
        low=0,
        high=1,
        label="Share of the steps with other text between",
    )
    context_tokens: int = setting(
        1024, "Longest text between prompt and rows, in tokens, at the end of the run.", low=1, offered=False
    )
    answers: float = setting(
        0.0, "Rows of the model's own answers to packaged questions for each row of text; 0 or off: none.",
        low=0, high=10, zero="off", label="The model's own answers, for each row of text",
        shown="off",
    )  # fmt: skip
    warmup: float = setting(
        0.05, "Share of the steps with a rising learning rate.", low=0, high=1, label="Warm-up, share of the steps"
    )
    final_lr: float = setting(0.1, "The last learning rate, as a share of the largest.", low=0, high=1, offered=False)
    clip: float = setting(1.0, "Largest gradient norm.", low=1e-6, high=1e9, label="Largest gradient norm")
    weight_decay: float = setting(0.0, "Weight decay.", low=0, high=1, shown="0", label="Weight decay")
    average: float = setting(
        0.1,
        "Memory of the weight average, as a share of the steps; 0 is off.",
        low=0,
        high=1,
        label="Weight average, share of the steps",
    )
    patience: int = setting(
        5,
        "Stop after so many evaluations without a better validation loss; 0 is off.",
        low=0,
        high=1_000_000,
        label="Evaluations without a better loss",
    )
    evaluate_every: int = setting(
        0,
        "Steps between evaluations.",
        low=0,
        high=10_000_000,
        shown="a tenth of the run, in short runs less often",
        label="Steps between evaluations",
    )
    sample_every: int = setting(
        0, "Steps between samples.", low=0, high=10_000_000, shown="a fifth of the run", label="Steps between samples"
    )
    validation_tokens: int = setting(2048, "Most tokens of an evaluation.", low=1, offered=False)
    init: str = setting(
        "data",
        "data, vocab, labels, random, text:WORDS or file:SOFT_PROMPT.",
        label="First matrix: data, vocab, labels, random, text:WORDS",
    )
    init_candidates: int = setting(
        8, "Excerpts that the start from data is chosen from.", low=1, high=256, offered=False
    )
    method: Method = setting(
        "plain", "Train the matrix itself, or a residual network that folds into it.", label="Method"
    )
    residual_width: int = setting(64, "Width of the residual network.", low=1, high=65536, offered=False)
    placement: PlacementName | Literal["auto"] = setting(
        "auto",
        "Where the prompt sits; `start` for KoboldAI and PEFT.",
        label="Placement (start: for KoboldAI and PEFT)",
    )
    objective: Objective = setting(
        "prefix-lm",
        "How an encoder-decoder learns plain texts: read the beginning and write the rest, or fill in spans as T5 was trained.",
        label="Plain texts, with an encoder-decoder",
    )
    optimiser: Literal["adam", "adafactor"] = setting(
        "adam",
        "Adam, or Adafactor as for the published prompts of T5, with a learning rate that is not in units of the RMS.",
        label="Optimiser",
    )
    pass_tokens: int = setting(
        1024,
        "Maximum number of positions in one forward pass; lower it if memory runs out. Only rounding changes.",
        low=1,
        high=10_000_000,
        shown="1024; of several soft prompts on a GPU, what its memory holds",
        label="Most positions in one pass (lower it for memory)",
    )
    sample_text: str = setting(
        "",
        "What the samples continue.",
        shown="the first words of a validation text",
        label="What the samples continue",
    )
    sample_tokens: int = setting(60, "Tokens of a sample.", low=1, high=4096, offered=False)
    measure: Measure = setting(
        "quick",
        "How the result is measured: within a quarter of the training's time, in full, or not at all.",
        label="Measurement of the result",
    )
    seed: int = seed_setting(label="Seed")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.lr is None:
            object.__setattr__(self, "lr", ADAFACTOR_RATE if self.optimiser == "adafactor" else RATES[self.kind])
        if self.kind == "kv" and self.method == "residual":
            raise ConfigError(
                "a KV prompt has no residual network", where="--method", expected="plain", got=self.method
            )
        if self.init not in ("data", "vocab", "labels", "random") and not self.init.startswith(("text:", "file:")):
            raise ConfigError(
                "unknown initialisation",
                where="--init",
                expected="data, vocab, labels, random, text:... or file:...",
                got=self.init,
            )

    @property
    def only_decoders(self) -> OnlyDecoders | None:
        """What it asks for that encoder-decoders cannot do."""
        return "a KV prompt" if self.kind == "kv" else None

    @property
    def evaluation_interval(self) -> int:
        # In a short run less often: a forward pass costs half a step, and evaluating takes a sixth of the time at most.
        in_steps = self.validation_tokens / (2 * self.batch * self.row_tokens)
        return self.evaluate_every or max(1, self.steps // 10, math.ceil(5 * in_steps))

    @property
    def sample_interval(self) -> int:
        return self.sample_every or max(1, self.steps // 5)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TrainConfig:
        """From a run's settings as stored. Raises ConfigError for a key that no setting has."""
        return from_json(TrainConfig, stored_settings(values))

    def check_room(self, context_length: int) -> None:
        """The prompt and a row must fit the model's context. Raises ConfigError."""
        check_context(
            {"BOS": 1, "soft": self.tokens, "text": self.row_tokens},
            context_length,
            what="a row after the soft prompt",
            where="--tokens and --row-tokens",
            do="lower --tokens or --row-tokens",
        )
