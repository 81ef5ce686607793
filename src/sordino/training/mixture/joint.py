"""Soft prompts and weights together: the loss is -log sum_k w_k p_k(y|x), an example's whole completion at once.

Its gradient towards a prompt is the gradient of that prompt's own loss, each example weighted by its responsibility
r_k = w_k p_k / sum_j w_j p_j (Qin & Eisner 2021, arXiv 2104.06599), so there is nothing to alternate. The weights are the running
mean of the responsibilities (online EM; Cappé & Moulines 2009, arXiv 0712.4273).

Trap: completions of many tokens differ by many nats, so responsibilities are nearly all or nothing from the first step on, and
the component whose first excerpt happens to be best gets everything. So they are tempered, r_k ~ w_k p_k^beta, with beta rising
from one over an example's length to one during the first part of the run (deterministic annealing; Ueda & Nakano 1998): all
components learn from everything at first, and take sides as they come apart.

A run is not resumed: it keeps nothing between steps that a seed does not give again, and the same seed gives the same bits.

Shape key: K components, P virtual tokens, D model width, N examples of a step, n of a pass, t labelled tokens of a pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sordino.errors import ConfigError, DataError, Diverged
from sordino.forward.combining import nll_of_texts, responsible
from sordino.forward.nll import nll_of_prompts_and_rows, nll_of_rows
from sordino.forward.packing import LabelledRows, best_packing, labelled_rows, one_by_one, with_leading_ids
from sordino.forward.placement import leading_ids, prefix_embeds
from sordino.forward.prefix import encode_prefixes, packable
from sordino.forward.token_losses import losses
from sordino.models.base_model import BaseModel
from sordino.models.memory import memory_named
from sordino.prompts.soft_prompt import Placement
from sordino.texts.examples import Example
from sordino.texts.excerpts import excerpt
from sordino.training.mixture.contexts import check_room, front_of_matrix
from sordino.training.pace import places_at, rate_at, spread_within

LOWER = "lower --pass-tokens (same result, less memory), then --batch, --row-tokens, --tokens or --joint"
# Excerpts that are tried for each component, and examples that they are tried on.
CANDIDATES, TRIED_ON = 6, 24


@dataclass(frozen=True)
class JointConfig:
    """As in training a single soft prompt: lr in units of the model's embedding RMS, warmup and average as shares of the steps.

    tokens: virtual tokens of a component that starts from an excerpt. batch: examples a step, each behind every component.
    anneal: the share of the steps in which responsibilities are tempered. evaluations: of a run. validation_tokens: of each.
    """

    tokens: int = 20
    steps: int = 150
    batch: int = 4
    lr: float = 0.25
    warmup: float = 0.05
    final_lr: float = 0.1
    clip: float = 1.0
    average: float = 0.1
    anneal: float = 0.25
    evaluations: int = 8
    validation_tokens: int = 2048
    pass_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--tokens", self.tokens, 1, 2047),
            ("--steps", self.steps, 1, 10_000_000),
            ("--batch", self.batch, 1, 100_000),
            ("--lr", self.lr, 1e-6, 100),
            ("--pass-tokens", self.pass_tokens, 1, 10_000_000),
        ):
            if not low <= value <= high:
                raise ConfigError("a setting is out of range", where=flag, expected=f"{low} to {high}", got=value)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    """One step is done. loss: of the mixture before the step, nats a token (tempered as the step was). weights: after it."""

    step: int
    loss: float
    beta: float
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Validation:
    """The averaged components' mixture on the validation set, nats a token; whether it is the best so far."""

    step: int
    loss: float
    best: bool


@dataclass(frozen=True)
class Finished:
    """The best components [P, D], float32, and the step that they are of."""

    matrices: tuple[Tensor, ...]
    best_step: int
    best_loss: float


Event = Step | Validation | Finished


def train_jointly(
    base: BaseModel,
    train: Sequence[Example],
    validation: Sequence[Example],
    starts: Sequence[Tensor],
    placement: Placement,
    config: JointConfig,
) -> Iterator[Event]:
    """Train K components from their first matrices [P, D]; the base model is not changed. `Finished` comes last.

    Without validation examples the last averaged components are the result. Raises ConfigError, DataError, Diverged, OutOfMemory.
    """
    if not train:
        raise DataError("there is nothing to train on", where="--data", got="no example")
    check_room(base, [front_of_matrix(base, start, placement) for start in starts], [*train, *validation])
    matrices = [start.detach().clone().requires_grad_() for start in starts]
    averages, best = [m.detach().clone() for m in matrices], [m.detach().clone() for m in matrices]
    optimiser = torch.optim.Adam(matrices, lr=config.lr, betas=(0.9, 0.99), foreach=False)
    weights_K = torch.full((len(starts),), 1 / len(starts), dtype=torch.float64)
    judged = spread_within(validation, config.validation_tokens)
    every = max(1, config.steps // config.evaluations)
    length = sum(sum(example.labelled) for example in train) / len(train)
    best_loss, best_step = math.inf, 0
    if judged:
        best_loss = _measured(base, averages, placement, weights_K, judged, config)
        yield Validation(0, best_loss, best=True)
    for step in range(config.steps):
        rate = rate_at(step, steps=config.steps, lr=config.lr, warmup=config.warmup, final_lr=config.final_lr)
        for group in optimiser.param_groups:
            group["lr"] = rate * base.embedding_rms
        beta = temper(step, config, length)
        places = places_at(step, total=len(train), batch=config.batch, seed=config.seed)
        examples = [train[place] for place in places]
        optimiser.zero_grad()
        with memory_named("training", LOWER):
            loss, responsible_NK = loss_and_gradient(
                base, matrices, placement, weights_K.log(), examples, beta=beta, pass_tokens=config.pass_tokens
            )
        norm = float(torch.nn.utils.clip_grad_norm_(matrices, config.clip))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise Diverged(
                "the loss is not a number",
                where=f"step {step + 1}",
                got=f"loss {loss}, gradient norm {norm}",
                do="start again with a lower --lr, or with --dtype float32",
            )
        optimiser.step()
        share = 1 / max(1.0, min(config.average * config.steps, step + 1.0))
        with torch.no_grad():
            for average, matrix in zip(averages, matrices, strict=True):
                average.lerp_(matrix, share)
            weights_K = weights_K.lerp(responsible_NK.mean(0), share)
        yield Step(step + 1, loss, beta, tuple(weights_K.tolist()))
        if judged and ((step + 1) % every == 0 or step + 1 == config.steps):
            measured = _measured(base, averages, placement, weights_K, judged, config)
            if measured < best_loss:
                best_loss, best_step, best = measured, step + 1, [average.clone() for average in averages]
            yield Validation(step + 1, measured, best=best_step == step + 1)
    if judged:
        yield Finished(tuple(best), best_step, best_loss)
    else:
        yield Finished(tuple(averages), config.steps, math.nan)


def temper(step: int, config: JointConfig, length: float) -> float:
    """beta of step `step`: from 1 / length, a token's worth, up to 1 along an exponential, then 1."""
    done = min(1.0, step / max(1.0, config.anneal * config.steps)) if config.anneal else 1.0
    return float(max(length, 1.0) ** (done - 1))


def loss_and_gradient(
    base: BaseModel,
    matrices: Sequence[Tensor],
    placement: Placement,
    log_weights_K: Tensor,
    examples: Sequence[Example],
    *,
    beta: float = 1.0,
    pass_tokens: int,
) -> tuple[float, Tensor]:
    """(loss, responsibilities float64 [N, K]); the loss's gradient is added to what `matrices` were made from.

    The loss is -1/beta log sum_k w_k p_k(y|x)^beta in nats a token. A pass holds whole examples behind all components, so each is
    complete in itself.
    """
    embeds = [prefix_embeds(base, matrix_PD, placement) for matrix_PD in matrices]
    led = [with_leading_ids(example, leading_ids(base, placement)) for example in examples]
    parts = _crossed(base, led, len(embeds), max(len(e) for e in embeds), pass_tokens)
    tokens = sum(sum(example.labelled) for example in examples)
    responsible_NK = torch.zeros(len(examples), len(embeds), dtype=torch.float64)
    total = 0.0

    def finish(nll_t: Tensor, part: LabelledRows) -> None:
        nonlocal total
        own_n, nll_nK = _of_examples(nll_t, part, len(embeds))
        log_weights = log_weights_K.to(device=nll_nK.device, dtype=nll_nK.dtype)
        loss = nll_of_texts(beta * nll_nK, log_weights).sum() / beta / tokens
        loss.backward()
        responsible_NK[own_n] = responsible(log_weights, -beta * nll_nK).detach().exp().cpu().double()
        total += loss.item()

    if len(parts) == 1:
        finish(nll_of_prompts_and_rows(base.network, embeds, parts[0].rows, parts[0].labelled_BT), parts[0])
        return total, responsible_NK
    prefixes = encode_prefixes(base.network, embeds)
    leaves = prefixes.as_leaves()
    for part in parts:
        finish(nll_of_rows(base.network, leaves.to(base.dtype), part.rows, part.labelled_BT), part)
    prefixes.backward(leaves)
    return total, responsible_NK


def excerpts_apart(
    base: BaseModel,
    train: Sequence[Example],
    placement: Placement,
    count: int,
    config: JointConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Tensor]:
    """First matrices [P, D] for `count` components: excerpts of the training texts that together, each for the examples it suits,
    predict some of them best; chosen greedily among CANDIDATES for each.
    """
    random = torch.Generator().manual_seed(config.seed)
    ids_C = [excerpt(train, config.tokens, random) for _ in range(CANDIDATES * count)]
    matrices = [base.embed(torch.tensor(ids, device=base.device)).detach().float().cpu() for ids in ids_C]
    judged = train[:: max(1, len(train) // TRIED_ON)][:TRIED_ON]
    fronts = [front_of_matrix(base, matrix, placement) for matrix in matrices]
    check_room(base, fronts, judged)
    scored = losses(base, fronts, judged, pass_tokens=config.pass_tokens, progress=progress)
    nll_NC = scored.of_examples()
    chosen: list[int] = []
    for _ in range(count):
        rest = [c for c in range(len(matrices)) if c not in chosen]
        chosen.append(min(rest, key=lambda c: float(nll_NC[:, [*chosen, c]].min(dim=1).values.sum())))
    return [matrices[c] for c in chosen]


def _crossed(
    base: BaseModel, led: Sequence[Example], count: int, prefix_length: int, pass_tokens: int
) -> list[LabelledRows]:
    """Passes of at most `pass_tokens` positions, or of one row behind all components; every row is there `count` times."""
    lengths = [len(example.ids) for example in led]
    groups = best_packing(lengths, prefix_length) if packable(base.network) else one_by_one(lengths)
    width = max(sum(lengths[i] for i in group) for group in groups)
    rows_a_pass = max(1, pass_tokens // (count * width))
    parts = [groups[at : at + rows_a_pass] for at in range(0, len(groups), rows_a_pass)]
    return [labelled_rows(led, part * count, [k for k in range(count) for _ in part]) for part in parts]


def _of_examples(nll_t: Tensor, part: LabelledRows, count: int) -> tuple[Tensor, Tensor]:
    """(the examples of a pass, each one's NLL [n, K] behind every component), differentiable."""
    own_n, place_t = part.example_N.unique(return_inverse=True)
    prompt_t = part.rows.prompt_B[part.labelled_BT.nonzero()[:, 0]]
    flat = nll_t.new_zeros(len(own_n) * count)
    flat = flat.index_add(0, (place_t * count + prompt_t).to(nll_t.device), nll_t)
    return own_n, flat.view(len(own_n), count)


def _measured(
    base: BaseModel,
    matrices: Sequence[Tensor],
    placement: Placement,
    weights_K: Tensor,
    examples: Sequence[Example],
    config: JointConfig,
) -> float:
    fronts = [front_of_matrix(base, matrix_PD, placement) for matrix_PD in matrices]
    scored = losses(base, fronts, examples, pass_tokens=config.pass_tokens)
    return float(nll_of_texts(scored.of_examples(), weights_K.log()).sum() / len(scored.nll_TK))
