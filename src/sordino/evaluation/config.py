"""Settings of what measures: `evaluate`, `answers`, `blend`, `prune` and `inspect`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sordino.errors import ConfigError
from sordino.prompts.attention import MOST_HOLD
from sordino.settings import check_settings, seed_setting, setting
from sordino.texts.pairs import Objective
from sordino.texts.pieces import Piece

EXCERPT_TOKENS = (20, 64, 128, 256, 512)
DISTANCES = (0, 64, 256, 768, 1536)
Between = Literal["foreign", "own", "written"]
BETWEEN: tuple[Between, ...] = get_args(Between)


def limit_setting(default: int) -> int:
    return setting(default, "Measure at most this many tokens of a text, spread evenly; 0 for all.", low=0, unit="N")


def row_tokens_setting() -> int:
    return setting(128, "Length of the windows that texts are cut into.", low=2, unit="N")


def pass_tokens_setting() -> int:
    help = "Maximum number of positions in one forward pass; lower it if memory runs out. The result is the same."
    return setting(4096, help, low=1, unit="N")


def resamples_setting() -> int:
    return setting(10_000, "Draws for the intervals.", low=100, unit="N")


@dataclass(frozen=True)
class DistanceConfig:
    """How far a soft prompt reaches: how much it helps after other text, by the tokens of that text.

    distances: tokens, ascending from 0. between: kinds of other text. parts: of the held-out texts, each after other texts of its
    own. foreign: texts in other voices; empty for the packaged ones. adapters: PEFT LoRA adapters to compare with.
    """

    distances: tuple[int, ...] = DISTANCES
    between: tuple[Between, ...] = BETWEEN
    hold: int | None = setting(
        None, "With --distance: measure every soft prompt with this hold too.", low=1, high=MOST_HOLD, unit="T"
    )
    limit: int = limit_setting(768)
    row_tokens: int = setting(96, "Length of the windows that are measured after other text.", low=2, unit="N")
    parts: int = setting(2, "Parts of the held-out texts, each after texts of its own.", low=1, high=64, unit="N")
    foreign: tuple[Piece, ...] = ()
    adapters: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        lengths = self.distances
        if len(lengths) < 2 or lengths[0] != 0 or list(lengths) != sorted(set(lengths)):
            raise ConfigError(
                "not a list of distances",
                where="--distance",
                expected="0,64,256: ascending from 0",
                got=",".join(map(str, lengths)),
            )
        if not self.between or not set(self.between) <= set(BETWEEN):
            raise ConfigError("unknown kind of text", where="between", expected=", ".join(BETWEEN), got=self.between)

    def positions(self, conditions: int, heldout: int) -> int:
        """How many positions so many conditions read after texts of one kind. heldout: tokens of the held-out texts."""
        return conditions * (len(self.distances) * min(self.limit, heldout) + self.parts * self.distances[-1])


@dataclass(frozen=True)
class ContinuationConfig:
    """Whether text stays healthy: `count` continuations of at most `tokens` tokens after `behind` tokens of other text."""

    count: int = setting(64, "Continuations of each soft prompt, held and not held.", low=1, flag="--continuations")
    tokens: int = setting(90, "Longest continuation, in tokens.", low=4)
    behind: int = setting(256, "Tokens of other text that are continued.", low=1)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class EvaluateConfig:
    """excerpt_tokens: lengths of real text to compare with, ascending. distance: None not to measure after other text.
    continuations: None to write none.
    """

    limit: int = limit_setting(8192)
    row_tokens: int = row_tokens_setting()
    excerpt_draws: int = setting(3, "Excerpts of each length, averaged.", low=1, unit="N")
    objective: Objective = setting(
        "prefix-lm", "How an encoder-decoder is measured on plain texts: on the rest of them, or on spans to fill in."
    )
    pass_tokens: int = pass_tokens_setting()
    seed: int = seed_setting(unit="N")
    resamples: int = resamples_setting()
    excerpt_tokens: tuple[int, ...] = EXCERPT_TOKENS
    distance: DistanceConfig | None = None
    continuations: ContinuationConfig | None = None

    def __post_init__(self) -> None:
        check_settings(self)
        lengths = self.excerpt_tokens
        if not lengths or min(lengths) < 1 or list(lengths) != sorted(set(lengths)):
            raise ConfigError("not a list of lengths", where="excerpt_tokens", expected="ascending", got=lengths)
        if not isinstance(self.distance, DistanceConfig | None):
            raise ConfigError(
                "not a list of distances",
                where="distance",
                expected="numbers of tokens: [0, 256, 768]",
                got=self.distance,
            )


@dataclass(frozen=True)
class TaskConfig:
    """How answers are measured."""

    row_tokens: int = setting(256, "Longest prompt; of a longer one its beginning is left out.", low=1, unit="N")
    pass_tokens: int = pass_tokens_setting()
    seed: int = seed_setting(unit="N")
    resamples: int = resamples_setting()
    shots: tuple[int, ...] = setting(
        (), "Compare with instructions followed by N examples too; may be repeated.", low=1, unit="N"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if len(set(self.shots)) < len(self.shots):
            raise ConfigError(
                "a number of examples is given twice", where="--shots", got=", ".join(map(str, self.shots))
            )


@dataclass(frozen=True)
class BlendConfig:
    """How soft prompts are blended, and how the losses between two of them are measured."""

    how: Literal["linear", "spherical", "concatenate"] = setting(
        "linear", "linear, spherical: row by row, along a line or a norm-keeping arc; concatenate: end to end."
    )
    points: int = setting(11, "Blends that are measured between the two.", low=2, high=101, unit="N")
    limit: int = limit_setting(2048)
    row_tokens: int = row_tokens_setting()
    pass_tokens: int = pass_tokens_setting()

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class PruneConfig:
    """How short a soft prompt is made, and how its lengths are measured."""

    tokens: int | None = setting(None, "Keep this many virtual tokens.", low=1, unit="N")
    tolerance: float | None = setting(
        None, "Keep as few as possible while the loss rises by at most this much.", low=0, shown="0.01", unit="NATS"
    )
    block: int | None = setting(
        None, "Drop this many at a time.", low=1, shown="1; more if it has over 24 tokens", unit="N"
    )
    limit: int = limit_setting(1024)
    row_tokens: int = row_tokens_setting()
    pass_tokens: int = pass_tokens_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.tokens is not None and self.tolerance is not None:
            raise ConfigError("two ways to say how short", where="--tokens, --tolerance", do="give one of them")


@dataclass(frozen=True)
class InspectConfig:
    """What is measured of a soft prompt. limit: None for as many tokens as a minute is enough for."""

    quick: bool = setting(False, "Words, norms and similarity only: nothing that needs a text.")
    words: int = setting(3, "Nearest words.", low=1, high=20, unit="N")
    limit: int | None = setting(
        None,
        "Measure at most this many tokens of a text.",
        low=0,
        shown="64 to 512; none if a soft prompt is long",
        unit="N",
    )
    row_tokens: int = row_tokens_setting()
    pass_tokens: int = pass_tokens_setting()

    def __post_init__(self) -> None:
        check_settings(self)
