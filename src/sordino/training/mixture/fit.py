"""From texts and soft prompts to a mixture: examples, losses, weights, gate, held-out numbers.

What is fitted is fitted on train, the gate's strength is chosen on validation, and held-out judges. It also decides whether the
gate is kept, so the number of a gate that won by a hair is a little flattering; its interval says whether it is a hair.

Shape key: N examples, K components, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sordino.evaluation.conditions import check_room, soft_prompt
from sordino.evaluation.confidence import Floats
from sordino.evaluation.scoring import Progress, shifted
from sordino.forward.gate_input import hidden_of_texts
from sordino.forward.token_losses import TokenLosses, losses
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_errors
from sordino.prompts.kv_prompt import SinglePrompt
from sordino.prompts.mixture import Mixture
from sordino.prompts.soft_prompt import Metadata, today
from sordino.texts.example_store import evenly
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece, data_hash
from sordino.texts.splits import Splits
from sordino.training.config import TextPaths
from sordino.training.mixture.config import FitConfig
from sordino.training.mixture.em import Weights, fit_weights
from sordino.training.mixture.gate import FittedGate, Scored, fit_gate, gate_weights
from sordino.training.mixture.report import Candidates, MixtureReport, measure, summary
from sordino.training.reading import read_split


@dataclass(frozen=True)
class MixtureTexts:
    """Three sets of examples that share no piece. notes: lines for the user about what was read, split and cut."""

    splits: Splits
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    heldout: tuple[Example, ...]
    notes: tuple[str, ...]

    @property
    def data_hash(self) -> str:
        return data_hash(self.splits.train + self.splits.validation)


@dataclass(frozen=True)
class FittedMixture:
    """gate: the one that was tried, if any; `mixture` holds it only if it was accepted."""

    mixture: Mixture
    weights: Weights
    gate: FittedGate | None
    report: MixtureReport
    notes: tuple[str, ...]


def prepare(base: BaseModel, texts: TextPaths, config: FitConfig) -> MixtureTexts:
    """Read the texts, split them, cut them into examples. Raises DataError."""
    splits, read = read_split(texts, base.end_markers, config.seed)
    notes = list(read)

    def examples(pieces: Sequence[Piece]) -> tuple[Example, ...]:
        if not pieces:
            return ()
        made = make_examples(pieces, base, max_tokens=config.row_tokens)
        notes.extend(note for note in made.notes if note not in notes)
        return tuple(with_context(example, config.context_tokens) for example in made.examples)

    train, validation, judged = examples(splits.train), examples(splits.validation), examples(splits.heldout)
    return MixtureTexts(splits, train, validation, judged, tuple(notes))


def fit(
    base: BaseModel,
    prompts: Sequence[tuple[str, SinglePrompt]],
    prepared: MixtureTexts,
    config: FitConfig,
    *,
    metadata: Metadata | None = None,
    recipe: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> FittedMixture:
    """The mixture of soft prompts (label, prompt), measured.

    metadata: what the user says of it. recipe: how the components came about, for the file. Raises ConfigError, OutOfMemory.
    """
    if config.gate == "always":
        base.check_decoder("a mixture's gate")
    components = [soft_prompt(base, label, prompt) for label, prompt in prompts]
    sets = [_thinned(examples, config.limit) for examples in (prepared.train, prepared.validation, prepared.heldout)]
    longest = max(len(example.ids) for examples in sets for example in examples)
    check_room(base, max(components, key=lambda component: component.length), longest)
    sizes = [len(examples) * len(components) for examples in sets]

    def scored(at: int) -> TokenLosses:
        own = shifted(progress, sum(sizes[:at]), sum(sizes))
        return losses(base, components, sets[at], pass_tokens=config.pass_tokens, progress=own)

    train = scored(0)
    nll_NK = train.of_examples().numpy()
    weights = fit_weights(nll_NK)
    notes: list[str] = []
    gate: FittedGate | None = None
    given_NK: Floats | None = None
    average_K = weights.weights_K
    if config.gate == "auto" and base.encoder_decoder is not None:
        notes.append("no gate: it reads the hidden states of decoders only")
    elif config.gate != "never" and len(prompts) > 1:
        with memory_errors("reading the texts", "lower --pass-tokens"):
            hidden = [_hidden(base, examples, config.pass_tokens) for examples in sets]
        # An empty text has nothing to learn from: it gets the gate's average weights.
        read = [np.asarray(hidden_ND.any(axis=1)) for hidden_ND in hidden]
        learned = Scored(hidden[0][read[0]], nll_NK[read[0]])
        # Without validation there is nothing to choose the strength on but the training examples themselves.
        steering = Scored(hidden[1][read[1]], scored(1).of_examples().numpy()[read[1]]) if read[1].any() else learned
        gate = fit_gate(learned, steering, weights.weights_K) if read[0].any() else None
        if gate is None:
            notes.append("no gate: nothing stands before the examples that could tell them apart")
        else:
            average_K = gate_weights(gate.gate, learned.hidden_ND).mean(axis=0)
            given_NK = np.where(read[2][:, None], gate_weights(gate.gate, hidden[2]), average_K)
    heldout = scored(2)
    progress(sum(sizes), sum(sizes))
    report = measure(
        heldout,
        [example.piece for example in sets[2]],
        Candidates([label for label, _ in prompts], int(nll_NK.sum(axis=0).argmin()), weights.weights_K, given_NK),
        resamples=config.resamples,
        seed=config.seed,
    )
    gate_used = gate is not None and (config.gate == "always" or report.gate_won is True)
    described = replace(
        metadata or Metadata(),
        base=base.ref,
        created=today(),
        training={**(recipe or {"method": "em"}), **_recipe(prepared, config, len(sets[0]), weights, gate)},
        heldout=summary(report),
    )
    mixture = Mixture(
        tuple(prompt for _, prompt in prompts),
        average_K if gate_used else weights.weights_K,
        "sequence",
        gate.gate if gate is not None and gate_used else None,
        described,
    )
    return FittedMixture(mixture, weights, gate, report, tuple(notes))


def with_context(example: Example, tokens: int) -> Example:
    """An example of which the first `tokens`, or half where it is short, are context: only if all of it was to be predicted."""
    if not all(example.labelled):
        return example
    taken = min(tokens, len(example.ids) // 2)
    return replace(example, labelled=(False,) * taken + (True,) * (len(example.ids) - taken))


def x_of(example: Example) -> tuple[int, ...]:
    """The tokens before an example's first labelled one."""
    return example.ids[: example.labelled.index(True)]


def _hidden(base: BaseModel, examples: Sequence[Example], pass_tokens: int) -> Floats:
    """What the gate reads [N, D], before each example's first labelled token."""
    return hidden_of_texts(base, [x_of(example) for example in examples], pass_tokens=pass_tokens).double().numpy()


def _thinned(examples: Sequence[Example], limit: int) -> Sequence[Example]:
    """Spread evenly, about `limit` tokens of them, at least one."""
    total = sum(len(example.ids) for example in examples)
    if not limit or total <= limit:
        return examples
    return evenly(examples, max(1, len(examples) * limit // total))


def _recipe(
    prepared: MixtureTexts, config: FitConfig, examples: int, weights: Weights, gate: FittedGate | None
) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "data_hash": prepared.data_hash,
        "examples": examples,
        "row_tokens": config.row_tokens,
        "context_tokens": config.context_tokens,
        "seed": config.seed,
        "em_steps": weights.steps,
        "fitted_weights": [round(float(weight), 6) for weight in weights.weights_K],
    }
    if gate is not None:
        recipe["gate_strength"] = float(np.format_float_positional(gate.strength, precision=6))
    return recipe
