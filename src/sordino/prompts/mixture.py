"""Several soft prompts that write as one: a mixture or an ensemble, as a value. This module knows no file format and no model.

A rule combines the components' predictions:

    sequence        p(y|x) = sum_k w_k p(y|x, prompt_k), y the whole continuation: a mixture (Qin & Eisner 2021, arXiv 2104.06599)
    probabilities   every token by sum_k w_k p_k(token): an ensemble, or a mixture whose weights stay fixed while it writes
    logits          every token by softmax(sum_k w_k logits_k)
    vote            every token by the components' first choices, ties by their mean probability (Lester et al. 2021, section 6)

Shape key: K components, D model width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, ConfigError, ModelError
from sordino.prompts.attention import PLAIN, Hold, PromptAttention
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.prompt import Prompt
from sordino.prompts.saving import save
from sordino.prompts.soft_prompt import Metadata

Rule = Literal["sequence", "probabilities", "logits", "vote"]
RULES: tuple[Rule, ...] = get_args(Rule)

# An engine's default number of rows: each component takes one.
MAX_COMPONENTS = 16
# A gate reads at most this many tokens of the text, the last ones.
GATE_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Gate:
    """Weights that depend on the text x: p(k|x) = softmax(slope @ h(x) + bias).

    slope_KD float32 [K, D], bias_K float32 [K]. h(x) [D] is the mean, over the last GATE_TOKENS tokens of x, of the base model's
    hidden state after its final norm, without a soft prompt (a BOS, where the tokenizer writes one, is read and not counted).
    For an empty x it is zero, and the gate is not used (`Mixture.weights_for`).

    Raises BadInput for arrays of other shapes or values that are not finite.
    """

    slope_KD: NDArray[np.float32]
    bias_K: NDArray[np.float32]

    def __post_init__(self) -> None:
        slope_KD, bias_K = np.array(self.slope_KD, dtype=np.float32), np.array(self.bias_K, dtype=np.float32)
        if slope_KD.ndim != 2 or bias_K.shape != slope_KD.shape[:1]:
            raise BadInput(
                "its arrays do not match",
                where="gate",
                expected="slope [components, d_model] and bias [components]",
                got=f"{list(slope_KD.shape)} and {list(bias_K.shape)}",
            )
        if not (np.isfinite(slope_KD).all() and np.isfinite(bias_K).all()):
            raise BadInput("it holds values that are not finite", where="gate")
        for name, array in (("slope_KD", slope_KD), ("bias_K", bias_K)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def weights(self, hidden_D: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """p(k|x) [K] of h(x) [D]. Raises ModelError where h(x) overflowed the model's number type."""
        if not np.isfinite(hidden_D).all():
            raise ModelError(
                "the model's hidden states of this text are not finite",
                where="gate",
                do="choose a --dtype of larger range",
            )
        scores_K = self.slope_KD.astype(np.float64) @ hidden_D.astype(np.float64) + self.bias_K
        raised_K = np.exp(scores_K - scores_K.max())
        weights_K: NDArray[np.float64] = raised_K / raised_K.sum()
        return weights_K


@dataclass(frozen=True, eq=False)
class Mixture:
    """Soft prompts of any kinds for models of one width, their weights, and the rule that combines their predictions.

    weights_K: float64 [K], none negative; scaled to sum to one. gate: gives the weights for each text; `weights_K` are then their
    average. metadata: of the whole; `training` says how the weights were found, and its placement is the first component's.
    Raises BadInput.
    """

    components: tuple[SinglePrompt, ...]
    weights_K: NDArray[np.float64]
    rule: Rule = "sequence"
    gate: Gate | None = None
    metadata: Metadata = field(default_factory=Metadata)
    kind: ClassVar[str] = "mixture"

    def __post_init__(self) -> None:
        count = len(self.components)
        if not 1 <= count <= MAX_COMPONENTS:
            raise BadInput(
                "the number of components is out of range",
                where="mixture",
                expected=f"1 to {MAX_COMPONENTS}",
                got=count,
            )
        if any(isinstance(part, Mixture) for part in self.components):
            raise BadInput("it cannot be a component of another", where="mixture", do="give its components")
        # A KV prompt need not state it.
        widths = sorted({prompt.d_model for prompt in self.components} - {0})
        if len(widths) > 1:
            raise BadInput("the components are of different widths", where="mixture", expected="one width", got=widths)
        if self.rule not in RULES:
            raise BadInput("unknown rule", where="mixture", expected=", ".join(RULES), got=self.rule)
        if self.gate is not None and self.gate.slope_KD.shape != (count, self.d_model):
            raise BadInput(
                "it was made for other components",
                where="gate",
                expected=[count, self.d_model],
                got=list(self.gate.slope_KD.shape),
            )
        placement = self.components[0].metadata.placement
        object.__setattr__(self, "metadata", replace(self.metadata, placement=placement))
        object.__setattr__(self, "weights_K", checked_weights(self.weights_K, count))

    @property
    def n_tokens(self) -> int:
        """Virtual tokens of the longest component: what the mixture takes up of the context."""
        return max(prompt.n_tokens for prompt in self.components)

    @property
    def d_model(self) -> int:
        """The width of the base model; 0 where no component states it."""
        return max(prompt.d_model for prompt in self.components)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the components' matrices, the weights, the rule and the gate. Names are left out."""
        digest = hashlib.sha256(f"mixture {self.rule} {len(self.components)} {self.gate is not None}\n".encode())
        for prompt in self.components:
            digest.update(
                f"{prompt.content_hash} {prompt.metadata.placement}{_named(prompt.metadata.attention)}\n".encode()
            )
        digest.update(self.weights_K.astype("<f8", copy=False).tobytes())
        if self.gate is not None:
            digest.update(self.gate.slope_KD.astype("<f4", copy=False).tobytes())
            digest.update(self.gate.bias_K.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def weights_for(self, hidden_D: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The weights [K] for a text of h(x) [D]: the gate's where there is one, but `weights_K` for an empty text.

        h(x) = 0 is far from every text that the gate was trained on. Raises as `Gate.weights`.
        """
        return self.weights_K if self.gate is None or not hidden_D.any() else self.gate.weights(hidden_D)

    def with_metadata(self, **changes: Any) -> Mixture:
        """The same mixture with some metadata fields replaced."""
        return replace(self, metadata=replace(self.metadata, **changes))

    def with_weights(self, weights_K: NDArray[np.float64] | list[float]) -> Mixture:
        """The same components with weights that do not depend on the text. Raises BadInput."""
        return replace(self, weights_K=np.asarray(weights_K, dtype=np.float64), gate=None)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a file that `sordino.load` reads. A library takes mixtures that are called NAME.mix.zip.

        overwrite: replace what is there. Raises BadInput, StorageError.
        """
        save(self, path, overwrite=overwrite)


def _named(attention: PromptAttention) -> str:
    return "" if attention.plain else f" hold {attention.hold} strength {attention.strength!r}"


# What a prompt file holds.
StoredPrompt = SinglePrompt | Mixture


@overload
def components_of(prompt: Prompt | Mixture) -> tuple[Prompt, ...]: ...


@overload
def components_of(prompt: Prompt | Mixture | None) -> tuple[Prompt | None, ...]: ...


def components_of(prompt: Prompt | Mixture | None) -> tuple[Prompt | None, ...]:
    """The prompts that a text is run after: a mixture's components, or the one, or none."""
    return prompt.components if isinstance(prompt, Mixture) else (prompt,)


def with_components(prompts: Mapping[str, StoredPrompt]) -> dict[str, StoredPrompt]:
    """Each mixture, followed by its components. Raises ConfigError where there is no mixture."""
    if not any(isinstance(prompt, Mixture) for prompt in prompts.values()):
        raise ConfigError("none of the soft prompts is a mixture", where="--components", do="leave --components out")
    found: dict[str, StoredPrompt] = {}
    for label, prompt in prompts.items():
        found[label] = prompt
        if isinstance(prompt, Mixture):
            for index, component in enumerate(prompt.components):
                found[f"{label}/{index} {component.metadata.name}".strip()] = component
    return found


@overload
def with_attention(
    prompt: StoredPrompt, hold: Hold | Sequence[Hold] | None, strength: float | Sequence[float] | None
) -> StoredPrompt: ...


@overload
def with_attention(
    prompt: StoredPrompt | None, hold: Hold | Sequence[Hold] | None, strength: float | Sequence[float] | None
) -> StoredPrompt | None: ...


def with_attention(
    prompt: StoredPrompt | None, hold: Hold | Sequence[Hold] | None, strength: float | Sequence[float] | None
) -> StoredPrompt | None:
    """The prompt with another hold or strength than its own; None leaves its own.

    For a mixture, one value for all components, or a list of one for each. Raises ConfigError.
    """
    if isinstance(prompt, Mixture):
        count = len(prompt.components)
        pairs = zip(_for_each("hold", hold, count), _for_each("strength", strength, count), strict=True)
        changed: Any = [with_attention(part, *pair) for part, pair in zip(prompt.components, pairs, strict=True)]
        return replace(prompt, components=tuple(changed))
    for name, value in (("hold", hold), ("strength", strength)):
        if isinstance(value, Sequence) and not isinstance(value, str):
            raise ConfigError("a list is for a mixture's components", where=name, do="give one value")
    attention = (PLAIN if prompt is None else prompt.metadata.attention).changed(hold, strength)  # type: ignore[arg-type]
    if prompt is None:
        if attention.plain:
            return None
        raise ConfigError(
            f"there is no soft prompt to {'strengthen' if attention.hold is None else 'hold'}",
            where="strength" if attention.hold is None else "hold",
            do="choose one, or leave this out",
        )
    return prompt if attention == prompt.metadata.attention else prompt.with_metadata(attention=attention)


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise ConfigError("not one value for each component", where=name, expected=count, got=len(value))
    return list(value)


def check_branches(prompt: Prompt | Mixture | None, most: int) -> None:
    """Raise ConfigError where a prompt has more components than an engine has rows."""
    if len(components_of(prompt)) > most:
        raise ConfigError(
            "the mixture has more components than the engine runs rows",
            where="soft_prompt",
            expected=f"at most {most}",
            got=len(components_of(prompt)),
            do="give more --rows, or choose a mixture of fewer",
        )


def uniform(count: int) -> NDArray[np.float64]:
    """Equal weights [K]."""
    return np.full(count, 1 / count)


def checked_weights(
    weights_K: Sequence[float] | NDArray[Any], count: int, *, where: str = "mixture", got: str | None = None
) -> NDArray[np.float64]:
    """`count` weights, none negative, scaled to sum to one: float64 [K], read-only. got: how they were given, for the error.

    Raises BadInput.
    """
    try:
        checked_K = np.array(weights_K, dtype=np.float64)
    except (TypeError, ValueError):
        checked_K = np.empty(0)
    valid = checked_K.shape == (count,) and bool(np.isfinite(checked_K).all()) and bool((checked_K >= 0).all())
    with np.errstate(over="ignore"):
        total = float(checked_K.sum()) if valid else 0.0
    if not 0 < total < np.inf:
        raise BadInput(
            "these are not weights",
            where=where,
            expected=f"{count} numbers with a finite sum, none negative, not all zero",
            got=repr(got) if got is not None else str(np.asarray(weights_K, dtype=object).tolist())[:80],
        )
    # Weights that sum to one already stay the same bits.
    checked_K = checked_K if abs(total - 1) < 1e-12 else checked_K / total
    checked_K.setflags(write=False)
    return checked_K
