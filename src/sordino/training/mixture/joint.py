"""Soft prompts and weights together: the loss is -log sum_k w_k p_k(y|x), an example's whole completion at once.

Its gradient towards a prompt is the gradient of that prompt's own loss, each example weighted by its responsibility
r_k = w_k p_k / sum_j w_j p_j (Qin & Eisner 2021, arXiv 2104.06599), so there is nothing to alternate. The weights are the running
mean of the responsibilities (online EM; Cappé & Moulines 2009, arXiv 0712.4273).

Trap: completions of many tokens differ by many nats, so responsibilities are nearly all or nothing from the first step on, and
the component whose first excerpt happens to be best gets everything. So they are tempered, r_k ~ w_k p_k^beta, with beta rising
from one over an example's length to one during the first part of the run (deterministic annealing; Ueda & Nakano 1998): all
components learn from everything at first, and take sides as they come apart.

The loop is `train.loop`: a mixture is one run whose matrix holds the virtual tokens of all components, one after another, and
whose loss splits it (`components`). It is not resumed: the weights are in no checkpoint. The same seed gives the same bits.

Shape key: K components, P rows of all components, W numbers of a row, N examples of a step, n of a pass, t labelled tokens of a
pass.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sordino.errors import DataError, Diverged, OutOfMemory
from sordino.evaluation import conditions
from sordino.evaluation.conditions import check_room
from sordino.forward.combining import nll_of_texts, responsible
from sordino.forward.packing import LabelledRows, labelled_rows, passes
from sordino.forward.sources import PrefixSource
from sordino.forward.token_losses import losses
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata
from sordino.texts.examples import Example, excerpt
from sordino.training.config import TrainConfig
from sordino.training.events import Finished, Step, Validation
from sordino.training.form import Form
from sordino.training.gradient import Batch, Loss, accumulate, hand_back, packings
from sordino.training.initialise import embeds_of
from sordino.training.loop import Run, TrainSet, train
from sordino.training.mixture.components import Component, MatrixPart, kind_of_run, stacked
from sordino.training.mixture.config import JointConfig
from sordino.training.state import averaged_steps
from sordino.training.strategy import Strategy

LOWER = "lower --pass-tokens (same result, less memory), then --batch, --row-tokens, --tokens or --joint"
# Excerpts that are tried for each component, and examples that they are tried on.
CANDIDATES, TRIED_ON = 6, 24


@dataclass(frozen=True)
class WeightedStep:
    """One step is done. Its loss is tempered as the step was. weights: of the components, after it."""

    step: Step
    beta: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class JointResult:
    """The best components, and the step that they are of."""

    components: tuple[Component, ...]
    best_step: int
    best_loss: float


def train_jointly(
    base: BaseModel, data: TrainSet, starts: Sequence[Component], config: JointConfig
) -> Iterator[WeightedStep | Validation | JointResult]:
    """Train K components of one placement; the base model is not changed. `JointResult` comes last.

    Without validation examples the last averaged components are the result. Raises ConfigError, DataError, Diverged, OutOfMemory.
    """
    if not data.train:
        raise DataError("there is nothing to train on", where="--data", got="no example")
    examples = [*data.train, *data.validation]
    longest = max(len(example.ids) for example in examples)
    check_room(base, max((start.condition(base) for start in starts), key=lambda one: one.length), longest)
    settings = config.for_loop(kind_of_run(starts), max(start.tokens for start in starts), longest)
    settings = replace(settings, placement=starts[0].form.placement)
    matrix_PW, slots = stacked(starts, config)
    length = sum(sum(example.labelled) for example in data.train) / len(data.train)
    mixture = MixtureLoss(slots, settings, lambda step: temper(step, config, length))
    with tempfile.TemporaryDirectory() as folder:
        run = Run("", data, settings, Path(folder), matrix_PW)
        try:
            for event in train(base, run, loss=Loss(mixture.backward, mixture.mean)):
                if isinstance(event, Step):
                    yield WeightedStep(event, mixture.beta, tuple(mixture.weights_K.tolist()))
                elif isinstance(event, Validation):
                    yield event
                elif isinstance(event, Finished):
                    done = event.progress
                    best = (done.best_step, done.best_loss) if data.validation else (done.step, math.nan)
                    parts = event.matrix_PD.split([slot.rows for slot in slots])
                    trained = (slot.component(part) for slot, part in zip(slots, parts, strict=True))
                    yield JointResult(tuple(trained), *best)
        except Diverged as error:
            do = "start again with a lower --lr, or with --dtype float32"
            raise Diverged(error.what, where=error.where, got=error.got, do=do) from None
        except OutOfMemory as error:
            raise OutOfMemory(error.what, where=error.where, got=error.got, do=LOWER) from None


def temper(step: int, config: JointConfig, length: float) -> float:
    """beta of step `step`: from 1 / length, a token's worth, up to 1 along an exponential, then 1."""
    done = min(1.0, step / max(1.0, config.anneal * config.steps)) if config.anneal else 1.0
    return float(max(length, 1.0) ** (done - 1))


class MixtureLoss:
    """The loss -1/beta log sum_k w_k p_k(y|x)^beta of one run, in nats a token, and the weights that it learns.

    slots: the components in the run's matrix. temper: from a step's number to its beta. weights_K: float64, uniform at first;
    each `backward` moves them towards the mean of the step's responsibilities.
    """

    def __init__(self, slots: Sequence[MatrixPart], config: TrainConfig, temper: Callable[[int], float]) -> None:
        self._slots, self._config, self._temper = list(slots), config, temper
        self.weights_K = torch.full((len(slots),), 1 / len(slots), dtype=torch.float64)
        self.beta = temper(0)

    def backward(self, base: BaseModel, batches: Sequence[Batch], pass_tokens: int, strategy: Strategy) -> list[float]:
        """See `Loss`. There is one batch, whose matrix holds the components one after another."""
        (batch,) = batches
        self.beta = self._temper(batch.step)
        leaf_PD = batch.source.matrix_PW.detach().requires_grad_()
        loss_1, total_K = torch.zeros(1, dtype=torch.float64), torch.zeros_like(self.weights_K)
        own = batch.of(leaf_PD, strategy.share(batch.examples))
        if own.examples:
            loss_1, responsible_NK = self.accumulate(base, own, batch.labelled, pass_tokens)
            total_K = responsible_NK.sum(0)
        hand_back([batch], [leaf_PD], loss_1, strategy)
        strategy.reduce([total_K])
        share = 1 / averaged_steps(batch.step + 1, self._config)
        self.weights_K = self.weights_K.lerp(total_K / len(batch.examples), share)
        return loss_1.tolist()

    def accumulate(self, base: BaseModel, batch: Batch, tokens: int, pass_tokens: int) -> tuple[Tensor, Tensor]:
        """(loss [1], responsibilities float64 [N, K]); the loss's gradient is added to what the batch's matrix was made from.

        tokens: labelled tokens of the step. A pass holds whole examples after all components, so each is complete in itself.
        """
        sources = [slot.source(rows) for slot, rows in self._parts(batch)]
        log_weights_K = self.weights_K.log()
        responsible_NK = torch.zeros(len(batch.examples), len(sources), dtype=torch.float64)

        def loss_of(nll_t: Tensor, part: LabelledRows) -> Tensor:
            own_n, nll_nK = _of_examples(nll_t, part, len(sources))
            log_weights = log_weights_K.to(device=nll_nK.device, dtype=nll_nK.dtype)
            responsible_NK[own_n] = responsible(log_weights, -self.beta * nll_nK).detach().exp().cpu().double()
            return nll_of_texts(self.beta * nll_nK, log_weights).sum()[None] / self.beta / tokens

        return accumulate(base, sources, _crossed(base, batch, sources, pass_tokens), loss_of), responsible_NK

    def mean(self, base: BaseModel, batches: Sequence[Batch], pass_tokens: int, strategy: Strategy) -> list[float]:
        """See `Loss`; without tempering."""
        (batch,) = batches
        total_1 = torch.zeros(1, dtype=torch.float64)
        if own := strategy.share(batch.examples):
            components = [slot.component(rows).condition(base) for slot, rows in self._parts(batch)]
            nll_NK = losses(base, components, own, pass_tokens=pass_tokens).of_examples()
            total_1 += nll_of_texts(nll_NK, self.weights_K.log()).sum()
        strategy.reduce([total_1])
        return [float(total_1) / batch.labelled]

    def _parts(self, batch: Batch) -> Iterator[tuple[MatrixPart, Tensor]]:
        rows = batch.source.matrix_PW.split([slot.rows for slot in self._slots])
        return zip(self._slots, rows, strict=True)


def excerpts_apart(
    base: BaseModel,
    train: Sequence[Example],
    form: Form,
    count: int,
    config: JointConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Component]:
    """The starts of `count` components: excerpts of the training texts that together, each for the examples it suits,
    predict some of them best; chosen greedily among CANDIDATES for each.
    """
    random = torch.Generator().manual_seed(config.seed)
    ids_C = [excerpt(train, config.tokens, random) for _ in range(CANDIDATES * count)]
    matrices = [embeds_of(base, ids) for ids in ids_C]
    judged = train[:: max(1, len(train) // TRIED_ON)][:TRIED_ON]
    known = Metadata(placement=form.placement)
    # A KV prompt begins as the keys and values of an excerpt, and predicts what that does.
    candidates = [conditions.matrix(base, "", matrix, known) for matrix in matrices]
    check_room(base, candidates[0], max(len(example.ids) for example in judged))
    scored = losses(base, candidates, judged, pass_tokens=config.pass_tokens, progress=progress)
    nll_NC = scored.of_examples()
    chosen: list[int] = []
    for _ in range(count):
        rest = [c for c in range(len(matrices)) if c not in chosen]
        chosen.append(min(rest, key=lambda c: float(nll_NC[:, [*chosen, c]].min(dim=1).values.sum())))
    return [Component(form, form.matrix_of_embeds(base, matrices[c])) for c in chosen]


def _crossed(base: BaseModel, batch: Batch, sources: Sequence[PrefixSource], pass_tokens: int) -> list[LabelledRows]:
    """Passes of at most `pass_tokens` positions, or of one row after all components; every row is there once a component."""
    rows, count = batch.rows(base), len(sources)
    lengths = [len(example.ids) for example in rows]
    (groups,) = packings(base, [lengths], max(source.positions(base) for source in sources))
    return [
        labelled_rows(rows, part * count, [k for k in range(count) for _ in part])
        for part in passes(groups, lengths, pass_tokens // count)
    ]


def _of_examples(nll_t: Tensor, part: LabelledRows, count: int) -> tuple[Tensor, Tensor]:
    """(the examples of a pass, each one's NLL [n, K] after every component), differentiable."""
    own_n, place_t = part.example_N.unique(return_inverse=True)
    prompt_t = part.rows.prompt_B[part.labelled_BT.nonzero()[:, 0]]
    flat = nll_t.new_zeros(len(own_n) * count)
    flat = flat.index_add(0, (place_t * count + prompt_t).to(nll_t.device), nll_t)
    return own_n, flat.view(len(own_n), count)
