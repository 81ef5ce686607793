"""Several soft prompts that write as one: a mixture or an ensemble, as a value. This module knows no file format and no model.

What the components say is combined by a rule:

    sequence        p(y|x) = sum_k w_k p(y|x, prompt_k), y the whole continuation: a mixture (Qin & Eisner 2021, arXiv 2104.06599)
    probabilities   every token by sum_k w_k p_k(token): an ensemble, or a mixture whose weights stay as they are while it writes
    logits          every token by softmax(sum_k w_k logits_k)
    vote            every token by the components' first choices, ties by their mean probability (Lester et al. 2021, section 6)

Shape key: K components, D model width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, ConfigError, ModelError
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

Rule = Literal["sequence", "probabilities", "logits", "vote"]
RULES: tuple[Rule, ...] = get_args(Rule)

# As many rows as an engine runs at once by default: a step takes a row a component.
MAX_COMPONENTS = 16
# A gate reads this many tokens of the text at most, the last ones.
GATE_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Gate:
    """Weights that depend on the text x: p(k|x) = softmax(slope @ h(x) + bias).

    slope_KD float32 [K, D], bias_K float32 [K]. h(x) [D] is the mean, over the last GATE_TOKENS tokens of x, of the base model's
    hidden state behind its final norm, without a soft prompt (a BOS, where the tokenizer writes one, is read and not counted).
    Of an empty x it is zero, and has nothing to say (`Mixture.weights_for`).

    Raises BadInput for arrays of other shapes or values that are not finite.
    """

    slope_KD: NDArray[np.float32]
    bias_K: NDArray[np.float32]

    def __post_init__(self) -> None:
        slope_KD, bias_K = np.array(self.slope_KD, dtype=np.float32), np.array(self.bias_K, dtype=np.float32)
        if slope_KD.ndim != 2 or bias_K.shape != slope_KD.shape[:1]:
            raise BadInput(
                "the gate's arrays do not go together",
                where="gate",
                expected="slope [components, d_model] and bias [components]",
                got=f"{list(slope_KD.shape)} and {list(bias_K.shape)}",
            )
        if not (np.isfinite(slope_KD).all() and np.isfinite(bias_K).all()):
            raise BadInput("the gate holds values that are not finite", where="gate")
        for name, array in (("slope_KD", slope_KD), ("bias_K", bias_K)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def weights(self, hidden_D: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """p(k|x) [K] of h(x) [D]. Raises ModelError where a model of small range made no numbers of the text."""
        if not np.isfinite(hidden_D).all():
            raise ModelError(
                "the model's hidden states behind this text are not numbers",
                where="gate",
                do="take a --dtype of larger range",
            )
        scores_K = self.slope_KD.astype(np.float64) @ hidden_D.astype(np.float64) + self.bias_K
        raised_K = np.exp(scores_K - scores_K.max())
        weights_K: NDArray[np.float64] = raised_K / raised_K.sum()
        return weights_K


@dataclass(frozen=True, eq=False)
class Mixture:
    """Soft prompts of one width, their weights, and the rule that combines what they say.

    weights_K: float64 [K], none negative; made to sum to one. gate: where there is one, it gives the weights for each text and
    `weights_K` are what it gives on average. metadata: of the whole; `training` says how the weights were found, and its placement
    is the first component's. Raises BadInput.
    """

    components: tuple[SoftPrompt, ...]
    weights_K: NDArray[np.float64]
    rule: Rule = "sequence"
    gate: Gate | None = None
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        count = len(self.components)
        if not 1 <= count <= MAX_COMPONENTS:
            raise BadInput(
                "the number of components is out of range",
                where="mixture",
                expected=f"1 to {MAX_COMPONENTS}",
                got=count,
            )
        widths = sorted({prompt.d_model for prompt in self.components})
        if len(widths) > 1:
            raise BadInput("the components are of different widths", where="mixture", expected="one width", got=widths)
        if self.rule not in RULES:
            raise BadInput("unknown rule", where="mixture", expected=", ".join(RULES), got=self.rule)
        if self.gate is not None and self.gate.slope_KD.shape != (count, widths[0]):
            raise BadInput(
                "the gate is made for other components",
                where="gate",
                expected=[count, widths[0]],
                got=list(self.gate.slope_KD.shape),
            )
        placement = self.components[0].metadata.placement
        object.__setattr__(self, "metadata", replace(self.metadata, placement=placement))
        object.__setattr__(self, "weights_K", _checked_weights(self.weights_K, count))

    @property
    def n_tokens(self) -> int:
        """Virtual tokens of the longest component: what the mixture takes of the context."""
        return max(prompt.n_tokens for prompt in self.components)

    @property
    def d_model(self) -> int:
        return self.components[0].d_model

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the components' matrices, the weights, the rule and the gate. Names are left out."""
        digest = hashlib.sha256(f"mixture {self.rule} {len(self.components)} {self.gate is not None}\n".encode())
        for prompt in self.components:
            digest.update(f"{prompt.content_hash} {prompt.metadata.placement}\n".encode())
        digest.update(self.weights_K.astype("<f8", copy=False).tobytes())
        if self.gate is not None:
            digest.update(self.gate.slope_KD.astype("<f4", copy=False).tobytes())
            digest.update(self.gate.bias_K.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def weights_for(self, hidden_D: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The weights [K] for a text of h(x) [D]: the gate's where there is one, and `weights_K` for an empty text.

        Zeros are far from every text that the gate has learned from. Raises as `Gate.weights`.
        """
        return self.weights_K if self.gate is None or not hidden_D.any() else self.gate.weights(hidden_D)

    def with_metadata(self, **changes: Any) -> Mixture:
        """The same mixture with some metadata fields replaced."""
        return replace(self, metadata=replace(self.metadata, **changes))

    def with_weights(self, weights_K: NDArray[np.float64] | list[float]) -> Mixture:
        """The same components under weights that do not depend on the text. Raises BadInput."""
        return replace(self, weights_K=np.asarray(weights_K, dtype=np.float64), gate=None)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a file that `sordino.load` reads. A library takes mixtures that are called NAME.mix.zip.

        overwrite: replace what is there. Raises BadInput, StorageError.
        """
        from sordino import formats

        formats.write_mixture(self, Path(path), force=overwrite)


Prompt = SoftPrompt | Mixture


def components_of(prompt: Prompt | None) -> tuple[SoftPrompt | None, ...]:
    """The soft prompts that a text is run behind: a mixture's components, or the one, or none."""
    return prompt.components if isinstance(prompt, Mixture) else (prompt,)


def with_components(prompts: Mapping[str, Prompt]) -> dict[str, Prompt]:
    """Each mixture, and behind it its components. Raises ConfigError where there is no mixture."""
    if not any(isinstance(prompt, Mixture) for prompt in prompts.values()):
        raise ConfigError("none of the soft prompts is a mixture", where="--components", do="leave --components out")
    found: dict[str, Prompt] = {}
    for label, prompt in prompts.items():
        found[label] = prompt
        if isinstance(prompt, Mixture):
            for index, component in enumerate(prompt.components):
                found[f"{label}/{index} {component.metadata.name}".strip()] = component
    return found


def check_branches(prompt: Prompt | None, most: int) -> None:
    """Raise ConfigError where there are more components than an engine runs rows."""
    if len(components_of(prompt)) > most:
        raise ConfigError(
            "the mixture has more components than the engine runs rows",
            where="soft_prompt",
            expected=f"at most {most}",
            got=len(components_of(prompt)),
            do="give more --rows, or take a mixture of fewer",
        )


def uniform(count: int) -> NDArray[np.float64]:
    """Equal weights [K]."""
    return np.full(count, 1 / count)


def _checked_weights(weights_K: NDArray[Any], count: int) -> NDArray[np.float64]:
    checked_K = np.array(weights_K, dtype=np.float64)
    good = checked_K.shape == (count,) and bool(np.isfinite(checked_K).all()) and bool((checked_K >= 0).all())
    with np.errstate(over="ignore"):
        total = float(checked_K.sum()) if good else 0.0
    if not 0 < total < np.inf:
        raise BadInput(
            "these are no weights",
            where="mixture",
            expected=f"{count} numbers with a finite sum, none negative, not all zero",
            got=str(checked_K.tolist())[:80],
        )
    # Weights that sum to one already are kept to the bit.
    checked_K = checked_K if abs(total - 1) < 1e-12 else checked_K / total
    checked_K.setflags(write=False)
    return checked_K
