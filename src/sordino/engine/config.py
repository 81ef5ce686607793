"""Settings of the engine: how tokens are drawn, what runs the model and in how much memory. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sordino.errors import ConfigError
from sordino.settings import check_settings, setting

# KoboldAI's numbers for the steps of `order`.
TOP_K, TOP_A, TOP_P, TFS, TYPICAL, TEMPERATURE, REPETITION = range(7)
# Looked at for every token of every row.
MOST_STOPS, MOST_BIASES, MOST_LIKELIEST = 256, 1024, 20
# What floats hold exactly.
_MOST = 2**53


_MIB = 1 << 20


@dataclass(frozen=True)
class EngineOptions:
    """What runs a model, and in how much memory, in MiB."""

    rows: int = setting(16, "Maximum number of requests that run at once.", low=1, high=256, unit="N")
    queue: int = setting(256, "Maximum number of requests that wait.", low=0, high=100_000, unit="N")
    kv_memory: float | None = setting(
        None, "Memory for running requests.", above=0, shown="a quarter of what is free", unit="MIB"
    )
    prefix_memory: float = setting(200, "Memory for prefixes and texts that may be used again.", low=0, unit="MIB")
    runner: Literal["auto", "torch", "gguf", "vllm"] = setting(
        "auto",
        "What runs the model; auto: llama.cpp for a .gguf file on a CPU, PyTorch for what it cannot do and elsewhere; a line says "
        "which. vllm: only for serve (pip install 'sordino[vllm]').",
    )
    vllm: tuple[str, ...] = setting(
        (), "A flag of vLLM's own, as in tensor-parallel-size=4; may be repeated.", unit="FLAG[=VALUE]"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.vllm and self.runner != "vllm":
            raise ConfigError(
                "this does nothing on its own", where="--vllm", do="give --runner vllm too, or leave it out"
            )

    @property
    def kv_bytes(self) -> int | None:
        return None if self.kv_memory is None else int(self.kv_memory * _MIB)

    @property
    def prefix_bytes(self) -> int:
        return int(self.prefix_memory * _MIB)

    @property
    def step_tokens(self) -> int:
        """Positions of a step: one for every row, and more for those that read a text."""
        return max(256, self.rows)


@dataclass(frozen=True)
class Limits:
    """rows: most that run at once. queue: most that wait. tokens: most positions in a step. chunk: most of them for one row."""

    rows: int = 16
    queue: int = 256
    tokens: int = 512
    chunk: int = 256

    @property
    def branches(self) -> int:
        """Most branches of a request: all run in one step."""
        return min(self.rows, self.tokens)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; what is at its default of 0 or 1 is off.

    top_k, top_p (Holtzman et al. 2020, arXiv 1904.09751), min_p (2407.01082), typical (2202.00666), tfs (tail free sampling),
    top_a (keeps p >= top_a * max(p)^2). repetition_penalty divides positive and multiplies negative logits of tokens seen
    (CTRL, 1909.05858) among the last repetition_range tokens (0: all); with repetition_slope the penalty grows towards the
    newest of them, as in KoboldAI. presence_penalty and frequency_penalty are OpenAI's, over new tokens only. logit_bias is
    added first. order: KoboldAI's numbers of the steps, 0 top_k, 1 top_a, 2 top_p (then min_p), 3 tfs, 4 typical,
    5 temperature, 6 repetition penalty; the default is the order of transformers. logprobs: how many of the likeliest tokens to
    report with each token (None: nothing is reported), of the model's own distribution.
    dry_*: DRY (text-generation-webui #5677); dry_range: last tokens that it looks at (0: all); dry_breakers: a token with one of
    these texts ends a repetition. xtc_*: XTC (#6335), after all steps of `order`. dynatemp_*: dynamic temperature, the temperature
    +- the range by entropy; smoothing_*: quadratic sampling; both belong to the temperature's step, and to no greedy row.
    end: what an end-of-text token does: "stop" the text; "ignore": it goes on after it; "forbid": it cannot come, as before
    min_tokens new tokens. banned: token sequences that cannot come: after all but the last token, the last one is left out.
    """

    max_tokens: int = setting(120, "Maximum number of new tokens.", low=1, unit="N", short="-n")
    temperature: float = setting(
        0.8,
        "Below 1 less random, above 1 more; 0 always takes the likeliest token.",
        low=0,
        high=1e3,
        unit="X",
        short="-t",
    )
    top_k: int = setting(0, "Draw from the K likeliest tokens; 0 from all.", low=0, unit="K")
    top_p: float = setting(
        0.95, "Draw from the likeliest tokens whose probabilities sum to P.", above=0, high=1, unit="P"
    )
    min_p: float = setting(0.0, "Leave out tokens less likely than P times the likeliest one.", low=0, high=1, unit="P")
    typical: float = setting(1.0, "Draw from the tokens nearest to the expected surprise.", above=0, high=1)
    top_a: float = setting(
        0.0, "Leave out tokens less likely than A times the square of the highest probability.", low=0, high=1
    )
    tfs: float = setting(1.0, "Cut off the flat tail of the distribution.", above=0, high=1)
    repetition_penalty: float = setting(
        1.0, "Above 1: avoid tokens that are in the text already.", low=0.01, high=100, unit="X"
    )
    repetition_range: int = setting(0, "How many of the last tokens the penalty covers; 0 for all.", low=0, high=_MOST)
    repetition_slope: float = setting(0.0, "How much more the penalty weighs on the newest tokens.", low=0, high=1e3)
    presence_penalty: float = setting(0.0, "Against tokens that were written already.", low=-2, high=2)
    frequency_penalty: float = setting(0.0, "Against tokens, for each time they were written.", low=-2, high=2)
    dry_multiplier: float = setting(0.0, "Above 0: avoid continuing a repetition (DRY).", low=0, high=100, unit="X")
    dry_base: float = setting(1.75, "How fast DRY grows with the length of the repetition.", low=1, high=10)
    dry_allowed_length: int = setting(2, "Repetitions of fewer tokens are free.", low=0, high=1000)
    dry_range: int = setting(0, "How many of the last tokens DRY covers; 0 for all.", low=0, high=_MOST)
    dry_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = setting(0.0, "How often the likeliest tokens are left out (XTC).", low=0, high=1, unit="P")
    xtc_threshold: float = setting(0.1, "XTC leaves out only tokens at least this likely.", low=0, high=1, unit="P")
    dynatemp_range: float = setting(0.0, "Moves the temperature by up to this with the entropy.", low=0, high=1e3)
    dynatemp_exponent: float = setting(1.0, "How the temperature follows the entropy.", low=0.01, high=100)
    smoothing_factor: float = setting(0.0, "Above 0: a parabola in place of the logits.", low=0, high=100)
    smoothing_curve: float = setting(1.0, "Above 1: the parabola falls faster far from the likeliest.", low=1, high=10)
    min_tokens: int = setting(0, "Minimum number of new tokens.", low=0, high=_MOST, unit="N")
    end: Literal["stop", "ignore", "forbid"] = setting("stop", "What an end-of-text token does.")
    banned: tuple[tuple[int, ...], ...] = ()
    order: tuple[int, ...] = (REPETITION, TEMPERATURE, TOP_K, TOP_A, TFS, TYPICAL, TOP_P)
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = setting(None, "How many of the likeliest tokens to report.", low=0, high=MOST_LIKELIEST)
    stop: tuple[str, ...] = setting(
        (), "Stop before this text; may be repeated. In bash, $'\\n' is a line end.", unit="TEXT"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        # Nearer to 0, arithmetic on logits leaves what numbers can hold.
        for flag, value in (("--temperature", self.temperature), ("--repetition-slope", self.repetition_slope)):
            _check(value == 0 or value >= 1e-3, flag, "0, or 0.001 to 1000", value)
        _check(sorted(self.order) == list(range(7)), "--order", "each of 0 to 6 once", self.order)
        _check(len(self.logit_bias) <= MOST_BIASES, "--logit-bias", f"at most {MOST_BIASES}", len(self.logit_bias))
        _check(all(abs(bias) <= 1e9 for _, bias in self.logit_bias), "--logit-bias", "-1e9 to 1e9", self.logit_bias)
        _check(len(self.banned) <= MOST_BIASES, "--banned", f"at most {MOST_BIASES}", len(self.banned))
        _check(all(self.banned), "--banned", "one token or more", "an empty sequence")
        for flag, texts in (("--dry-breakers", self.dry_breakers), ("--stop", self.stop)):
            _check(len(texts) <= MOST_STOPS, flag, f"at most {MOST_STOPS}", len(texts))
            _check(all(texts), flag, "a text of one character or more", "an empty one")


def _check(holds: bool, flag: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError("out of range", where=flag, expected=expected, got=got)
