"""Several soft prompts of one base model blended into one.

    linear        sum_k w_k a_k, row by row, the weights summing to one
    spherical     row by row along the arc between two directions, the norms interpolated linearly (Shoemake 1985): a linear blend
                  of two rows that point different ways is shorter than both, this one is not
    concatenate   one after the other, in the order given

Rows are paired by position. That is a convention: two prompts trained separately need not do the same thing at the same position.
Blends are for trying out and for measuring (`analysis.path`).

KV prompts are blended linearly alone: their keys are rotated for their positions, so equal positions can be averaged and none can
be moved, and a row is not one vector but those of all layers.

Shape key: K soft prompts, P virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput
from sordino.prompts.fit import check_one_base, common_base
from sordino.prompts.kv_prompt import KVPrompt, SinglePrompt
from sordino.prompts.mixture import checked_weights
from sordino.prompts.soft_prompt import MAX_TOKENS, RATINGS, Metadata, Rating, SoftPrompt, today

How = Literal["linear", "spherical", "concatenate"]
Matrix = NDArray[np.float32]

# The sine of an angle below which rounding decides about the arc; the straight line is as good there.
_ONE_LINE = 1e-6


@dataclass(frozen=True, eq=False)
class Blend:
    """The result, and notes for its maker, a line each."""

    prompt: SinglePrompt
    notes: tuple[str, ...]


def blend(prompts: Sequence[SinglePrompt], weights: Sequence[float], how: How, *, created: str = "") -> Blend:
    """One soft prompt from several. weights: none negative; scaled to sum to one. A concatenation ignores their values.

    created: a date, by default today. Raises BadInput (weights, lengths, placements, kinds, more than two prompts for spherical,
    KV prompts but for linear), DoesNotFit (base models).
    """
    shares = tuple(map(float, checked_weights(weights, len(prompts), where="blend")))
    notes = check_blendable(prompts, how)
    metadata, more = _metadata(prompts, shares, how, created or today())
    return Blend(_blended(prompts, shares, how, metadata), (*notes, *more))


def _blended(prompts: Sequence[SinglePrompt], shares: Sequence[float], how: How, metadata: Metadata) -> SinglePrompt:
    kvs = [prompt for prompt in prompts if isinstance(prompt, KVPrompt)]
    if kvs:
        flat_PW = linear([prompt.flat_PW for prompt in kvs], shares)
        known = all(len(prompt.last_D) for prompt in kvs)
        last_D = linear([prompt.last_D for prompt in kvs], shares) if known else np.empty(0, np.float32)
        return KVPrompt(flat_PW, kvs[0].shape, last_D, metadata)
    matrices = [prompt.matrix for prompt in prompts if isinstance(prompt, SoftPrompt)]
    if how == "concatenate":
        return SoftPrompt(np.concatenate(matrices), metadata)
    if how == "spherical":
        return SoftPrompt(spherical(matrices[0], matrices[1], shares[1]), metadata)
    return SoftPrompt(linear(matrices, shares), metadata)


def linear(matrices: Sequence[Matrix], shares: Sequence[float]) -> Matrix:
    """sum_k shares_k matrices_k, [P, D] each. A share of one gives exactly that matrix."""
    for matrix, share in zip(matrices, shares, strict=True):
        if share == 1:
            return matrix
    total = sum(share * matrix.astype(np.float64) for matrix, share in zip(matrices, shares, strict=True))
    return np.asarray(total, dtype=np.float32)


def spherical(first_PD: Matrix, second_PD: Matrix, share: float) -> Matrix:
    """[P, D], from exactly the first (share 0) to exactly the second (share 1).

    Rows that are parallel or zero are interpolated linearly.
    """
    if share in (0, 1):
        return second_PD if share else first_PD
    a_PD, b_PD = first_PD.astype(np.float64), second_PD.astype(np.float64)
    norms_a_P1, norms_b_P1 = (np.linalg.norm(m, axis=1, keepdims=True) for m in (a_PD, b_PD))
    units_a_PD, units_b_PD = a_PD / np.maximum(norms_a_P1, 1e-300), b_PD / np.maximum(norms_b_P1, 1e-300)
    angle_P1 = np.arccos(np.clip((units_a_PD * units_b_PD).sum(1, keepdims=True), -1, 1))
    sine_P1 = np.sin(angle_P1)
    curved_P1 = (sine_P1 > _ONE_LINE) & (norms_a_P1 > 0) & (norms_b_P1 > 0)
    safe_P1 = np.where(curved_P1, sine_P1, 1)
    direction_PD = (np.sin((1 - share) * angle_P1) * units_a_PD + np.sin(share * angle_P1) * units_b_PD) / safe_P1
    norm_P1 = (1 - share) * norms_a_P1 + share * norms_b_P1
    mixed_PD = np.where(curved_P1, direction_PD * norm_P1, (1 - share) * a_PD + share * b_PD)
    return mixed_PD.astype(np.float32)


def check_blendable(prompts: Sequence[SinglePrompt], how: How) -> list[str]:
    """Check that these can be blended. Returns what is uncertain, a line each. Raises DoesNotFit, BadInput."""
    if len(prompts) < 2:
        raise BadInput("two soft prompts or more are needed", where="blend", got=len(prompts))
    kinds = sorted({prompt.kind for prompt in prompts})
    if len(kinds) > 1:
        raise BadInput(
            "prompts of different kinds have no numbers to pair",
            where="blend",
            expected="one kind",
            got=", ".join(kinds),
            do="sordino ensemble build lets them write together",
        )
    if kinds == [KVPrompt.kind] and how != "linear":
        raise BadInput("KV prompts are blended linearly alone", where=f"--how {how}", do="give --how linear")
    notes = check_one_base(prompts, "blended")
    _check_placement_and_lengths(prompts, how)
    return notes


def _check_placement_and_lengths(prompts: Sequence[SinglePrompt], how: How) -> None:
    placements = sorted({prompt.metadata.placement for prompt in prompts})
    if len(placements) > 1:
        raise BadInput(
            "some of these stand before BOS and some after it",
            where="placement",
            expected="one placement",
            got=", ".join(f"{prompt.title}: {prompt.metadata.placement}" for prompt in prompts),
            do="train them with one --placement",
        )
    attentions = {prompt.metadata.attention for prompt in prompts}
    if len(attentions) > 1:
        raise BadInput(
            "text gives some of these more attention than others",
            where="blend",
            expected="one hold and strength",
            got=", ".join(f"{prompt.title}: {prompt.metadata.attention}" for prompt in prompts),
            do="give --hold and --strength for all of them",
        )
    if how == "concatenate":
        total = sum(prompt.n_tokens for prompt in prompts)
        if total > MAX_TOKENS:
            raise BadInput(
                "together they have too many virtual tokens", where="blend", expected=f"at most {MAX_TOKENS}", got=total
            )
        return
    if len({prompt.n_tokens for prompt in prompts}) > 1:
        raise BadInput(
            "soft prompts of different lengths have no rows to pair",
            where="blend",
            expected="one length",
            got=", ".join(f"{prompt.title}: {prompt.n_tokens}" for prompt in prompts),
            do="shorten the longer ones with sordino prune --tokens, or give --how concatenate",
        )
    if how == "spherical" and len(prompts) != 2:
        raise BadInput(
            "a spherical blend is of exactly two soft prompts",
            where="--how spherical",
            got=len(prompts),
            do="give --how linear",
        )


# The blend's metadata ------------------------------------------------------------------------------------------


def _metadata(
    prompts: Sequence[SinglePrompt], shares: Sequence[float], how: How, created: str
) -> tuple[Metadata, list[str]]:
    sources = [prompt.metadata for prompt in prompts]
    licence, notes = joined_licence([source.licence for source in sources])
    rating, more = strictest([source.rating for source in sources])
    weights = [1.0] * len(prompts) if how == "concatenate" else shares
    parts = [
        {"content_hash": prompt.content_hash, "tokens": prompt.n_tokens}
        | ({} if how == "concatenate" else {"weight": float(weight)})
        | ({"name": prompt.metadata.name} if prompt.metadata.name else {})
        for prompt, weight in zip(prompts, weights, strict=True)
    ]
    titles = [prompt.title for prompt in prompts]
    if how != "concatenate":
        titles = [f"{title} {share:.2g}" for title, share in zip(titles, shares, strict=True)]
    return Metadata(
        name=" + ".join(titles),
        author=", ".join(dict.fromkeys(source.author for source in sources if source.author)),
        supported=tuple(name for name in sources[0].supported if all(name in source.supported for source in sources)),
        description=f"A blend ({how}) of {' and '.join(titles)}.",
        base=common_base([source.base for source in sources]),
        placement=sources[0].placement,
        attention=sources[0].attention,
        licence=licence,
        tags=tuple(dict.fromkeys(tag for source in sources for tag in source.tags)),
        rating=rating,
        created=created,
        training={"blend": {"how": how, "of": parts}},
    ), [*notes, *more]


def joined_licence(licences: Sequence[str]) -> tuple[str, list[str]]:
    """The licence of a work made from several: all that were given apply. Notes say where they differ or one is missing."""
    given = list(dict.fromkeys(licence for licence in licences if licence))
    joined = given[0] if len(given) == 1 else " AND ".join(f"({one})" if " " in one else one for one in given)
    notes = []
    if len(given) > 1:
        notes.append(f"the licences differ, and all of them apply to the result: {', '.join(given)}")
    if given and not all(licences):
        notes.append("some of the soft prompts give no licence: find out whether the result may be shared")
    return joined, notes


def strictest(ratings: Sequence[Rating | Literal[""]]) -> tuple[Rating | Literal[""], list[str]]:
    """The strictest rating that was given, and a note where not all share it."""
    given = [rating for rating in ratings if rating]
    if not given:
        return "", []
    strict = max(given, key=RATINGS.index)
    return strict, ([] if set(ratings) == {strict} else [f"the strictest rating is kept: {strict}"])
