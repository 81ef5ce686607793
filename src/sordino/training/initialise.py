"""Where a soft prompt starts. Real text of the corpus beats vocabulary samples beats noise (Lester et al. 2021, section 3.2).

Shape key: P virtual tokens, D model width, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sordino.errors import ConfigError, DataError
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel
from sordino.prompts.kv_prompt import KVPrompt
from sordino.prompts.soft_prompt import PlacementName, SoftPrompt
from sordino.texts.examples import Example, excerpt
from sordino.training.config import TrainConfig
from sordino.training.form import Form
from sordino.training.gradient import Batch, mean_nlls
from sordino.training.job import read_prompt

# Choosing among excerpts is a ranking, and few tokens rank them as well as many.
SCORING_TOKENS = 256


@dataclass(frozen=True)
class Start:
    """A first matrix float32, see `training.form`, and a sentence about where it came from."""

    matrix_PD: Tensor
    how: str


def initialise(
    base: BaseModel,
    config: TrainConfig,
    form: Form,
    train: Sequence[Example],
    validation: Sequence[Example],
) -> Start:
    """The matrix that training starts from, as `config.init` says. Raises ConfigError, DataError, DoesNotFit.

    A KV prompt starts from the keys and values of what an embedding prompt would start from.
    """
    if config.init.startswith("file:"):
        prompt = read_prompt(config.init.removeprefix("file:"))
        if isinstance(prompt, KVPrompt):
            return _from_kv_prompt(base, config, form, prompt)
        start = _from_prompt(base, config, prompt, train, torch.Generator().manual_seed(config.seed))
    else:
        start = _from_texts(base, config, form.placement, train, validation)
    return replace(start, matrix_PD=form.matrix_of_embeds(base, start.matrix_PD))


def _from_texts(
    base: BaseModel,
    config: TrainConfig,
    placement: PlacementName,
    train: Sequence[Example],
    validation: Sequence[Example],
) -> Start:
    kind, _, rest = config.init.partition(":")
    random = torch.Generator().manual_seed(config.seed)
    if kind == "data":
        return _best_excerpt(base, config, placement, train, validation, random)
    if kind == "text":
        return Start(
            embeds_of(base, _fill(base.encode(rest), config.tokens, "--init text:")), f"the text {rest[:60]!r}"
        )
    if kind == "labels":
        return Start(embeds_of(base, _label_ids(base, config, train)), "the completions' own words")
    if kind == "vocab":
        ids = torch.randint(base.vocab_size, (config.tokens,), generator=random)
        return Start(embeds_of(base, ids.tolist()), "random words of the vocabulary")
    noise = torch.randn(config.tokens, base.d_model, generator=random) * base.embedding_rms
    return Start(noise, "random numbers")


def _best_excerpt(
    base: BaseModel,
    config: TrainConfig,
    placement: PlacementName,
    train: Sequence[Example],
    validation: Sequence[Example],
    random: torch.Generator,
) -> Start:
    candidates = [excerpt(train, config.tokens, random) for _ in range(config.init_candidates)]
    matrices = [embeds_of(base, ids) for ids in candidates]
    if len(matrices) == 1:
        return Start(matrices[0], "an excerpt of the training texts")
    losses = score(base, matrices, placement, validation or train, config.pass_tokens)
    best = min(range(len(losses)), key=losses.__getitem__)
    return Start(
        matrices[best], f"the best of {len(matrices)} excerpts of the training texts (loss {losses[best]:.3f})"
    )


def score(
    base: BaseModel, matrices: Sequence[Tensor], placement: PlacementName, examples: Sequence[Example], pass_tokens: int
) -> list[float]:
    """Mean NLL after each of K matrices on the first examples."""
    chosen: list[Example] = []
    for example in examples:
        if sum(len(e.ids) for e in chosen) >= SCORING_TOKENS:
            break
        chosen.append(example)
    return mean_nlls(base, [Batch(PrefixSource(matrix_PD, placement), chosen) for matrix_PD in matrices], pass_tokens)


def _label_ids(base: BaseModel, config: TrainConfig, train: Sequence[Example]) -> list[int]:
    """The most frequent labelled tokens: for a closed set of answers, the class labels (Lester et al. 2021)."""
    counts: dict[int, int] = {}
    for example in train:
        for token, labelled in zip(example.ids, example.labelled, strict=True):
            if labelled and token not in base.stop_ids:
                counts[token] = counts.get(token, 0) + 1
    frequent = sorted(counts, key=lambda token: (-counts[token], token))[: config.tokens]
    return _fill(frequent, config.tokens, "--init labels")


def _from_kv_prompt(base: BaseModel, config: TrainConfig, form: Form, prompt: KVPrompt) -> Start:
    base.check_fit(prompt, force=False)
    placed = (config.kind, config.tokens, form.placement)
    if placed != ("kv", prompt.n_tokens, prompt.metadata.placement):
        raise ConfigError(
            "a KV prompt can start only one of its own kind, length and placement",
            where="--init file:",
            expected=f"--kind kv --tokens {prompt.n_tokens} --placement {prompt.metadata.placement}",
            got=f"--kind {placed[0]} --tokens {placed[1]} --placement {placed[2]}",
        )
    return Start(form.matrix_of_kv(prompt), f"the KV prompt {prompt.metadata.name!r}")


def _from_prompt(
    base: BaseModel, config: TrainConfig, prompt: SoftPrompt, train: Sequence[Example], random: torch.Generator
) -> Start:
    """Another prompt's matrix (SPoT, Vu et al. 2022, arXiv 2110.07904), cut or filled up to the length that is asked for.

    Cut or not, what stood next to the text still does: of a longer prompt the last rows are kept, and a shorter one gets an
    excerpt of the training texts in front.
    """
    base.check_fit(prompt, force=False)
    matrix_PD, named = torch.from_numpy(prompt.matrix.copy()), f"the soft prompt {prompt.metadata.name!r}"
    missing = config.tokens - prompt.n_tokens
    if missing < 0:
        return Start(
            matrix_PD[-config.tokens :].clone(), f"the last {config.tokens} of {prompt.n_tokens} vectors of {named}"
        )
    if missing > 0:
        excerpt_PD = embeds_of(base, excerpt(train, missing, random))
        how = f"{named} ({prompt.n_tokens} vectors) after {missing} tokens of an excerpt of the training texts"
        return Start(torch.cat([excerpt_PD, matrix_PD]), how)
    return Start(matrix_PD, named)


def _fill(ids: Sequence[int], tokens: int, where: str) -> list[int]:
    """`ids` repeated or cut to `tokens` of them."""
    if not ids:
        raise DataError("there are no words to start from", where=where, expected="at least one token", got="none")
    return [ids[i % len(ids)] for i in range(tokens)]


def embeds_of(base: BaseModel, ids: Sequence[int]) -> Tensor:
    """The words' own embeddings [P, D], float32 on the CPU."""
    return base.embed(torch.tensor(ids, device=base.device)).detach().float().cpu()
