"""Several soft prompts of one base model blended into one.

    linear        sum_k w_k a_k, row by row, the weights summing to one
    spherical     row by row along the arc between two directions, the norms interpolated linearly (Shoemake 1985): a blend of
                  two rows that point different ways is not shorter than both, as the linear one is
    concatenate   one behind the other, in the order given

Rows are paired by position, which is a convention, not a correspondence: two prompts trained apart need not do the same thing at
the same place. Blends are for trying, and for measuring (`anatomy.path`).

Shape key: K soft prompts, P virtual tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sordino.errors import BadInput, DoesNotFit
from sordino.prompts.fit import fit
from sordino.prompts.soft_prompt import MAX_TOKENS, RATINGS, BaseRef, Metadata, Rating, SoftPrompt

How = Literal["linear", "spherical", "concatenate"]
Matrix = NDArray[np.float32]

# Of two directions that are this near to one line the arc is not defined to the last digit, and linear is the same or as good.
_ONE_LINE = 1e-6


@dataclass(frozen=True, eq=False)
class Blend:
    """The result, and what its maker should know of it, a line each."""

    prompt: SoftPrompt
    notes: tuple[str, ...]


def blend(prompts: Sequence[SoftPrompt], weights: Sequence[float], how: How, *, created: str = "") -> Blend:
    """One soft prompt of several. weights: none negative; made to sum to one. Of a concatenation they are all alike.

    created: a date, by default today. Raises BadInput (weights, lengths, placements, two prompts for spherical), DoesNotFit (base
    models).
    """
    shares = shares_of(weights, len(prompts))
    notes = check_together(prompts, how)
    matrices = [prompt.matrix for prompt in prompts]
    if how == "concatenate":
        matrix = concatenated(matrices)
    elif how == "spherical":
        matrix = spherical(matrices[0], matrices[1], shares[1])
    else:
        matrix = linear(matrices, shares)
    known, more = _metadata(prompts, shares, how, created or datetime.now(UTC).strftime("%Y-%m-%d"))
    return Blend(SoftPrompt(matrix, known), (*notes, *more))


def linear(matrices: Sequence[Matrix], shares: Sequence[float]) -> Matrix:
    """sum_k shares_k matrices_k [P, D]. A share of one gives that matrix to the bit."""
    for matrix, share in zip(matrices, shares, strict=True):
        if share == 1:
            return matrix
    total = sum(share * matrix.astype(np.float64) for matrix, share in zip(matrices, shares, strict=True))
    return np.asarray(total, dtype=np.float32)


def spherical(first_PD: Matrix, second_PD: Matrix, share: float) -> Matrix:
    """[P, D], from the first (share 0, to the bit) to the second (share 1, to the bit).

    Rows that lie on one line, or are zero, are interpolated linearly.
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


def concatenated(matrices: Sequence[Matrix]) -> Matrix:
    """One behind the other, in the order given."""
    return np.concatenate(matrices)


def shares_of(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """`count` weights made to sum to one. Raises BadInput."""
    good = len(weights) == count and all(np.isfinite(weight) and weight >= 0 for weight in weights)
    total = sum(weights) if good else 0
    if not 0 < total < np.inf:
        raise BadInput(
            "these are no weights",
            where="blend",
            expected=f"{count} numbers, none negative, not all zero",
            got=", ".join(f"{weight:g}" for weight in weights) or "none",
        )
    return tuple(weight / total for weight in weights)


def check_together(prompts: Sequence[SoftPrompt], how: How) -> list[str]:
    """Raise DoesNotFit or BadInput unless these can be blended. Returns what cannot be known, a line each."""
    if len(prompts) < 2:
        raise BadInput("a blend needs two soft prompts or more", where="blend", got=len(prompts))
    first, notes = prompts[0], []
    model = replace(first.metadata.base, d_model=first.d_model)
    for other in prompts[1:]:
        found = fit(model, other.d_model, other.metadata)
        if found.kind == "no":
            raise DoesNotFit(
                "soft prompts of different base models cannot be blended",
                where=_title(other),
                expected=_origin(first),
                got=_origin(other),
                do="blend those of one base model",
            )
        if found.kind == "unknown" or not model.family:
            notes.append(
                f"{_title(first)} and {_title(other)} are of one width, and their files do not say that they are for one base model"
            )
        elif found.kind == "same family":
            notes.append(f"{_title(other)} was made for other weights of the same kind of model than {_title(first)}")
    _check_placement_and_lengths(prompts, how)
    return notes


def _check_placement_and_lengths(prompts: Sequence[SoftPrompt], how: How) -> None:
    placements = sorted({prompt.metadata.placement for prompt in prompts})
    if len(placements) > 1:
        raise BadInput(
            "some of these stand before BOS and some behind it",
            where="placement",
            expected="one placement",
            got=", ".join(f"{_title(prompt)}: {prompt.metadata.placement}" for prompt in prompts),
            do="train them with one --placement",
        )
    if how == "concatenate":
        total = sum(prompt.n_tokens for prompt in prompts)
        if total > MAX_TOKENS:
            raise BadInput("together they are too long", where="blend", expected=f"at most {MAX_TOKENS}", got=total)
        return
    if len({prompt.n_tokens for prompt in prompts}) > 1:
        raise BadInput(
            "soft prompts of different lengths have no rows to pair",
            where="blend",
            expected="one length",
            got=", ".join(f"{_title(prompt)}: {prompt.n_tokens}" for prompt in prompts),
            do="shorten the longer ones with sordino prune --tokens, or give --how concatenate",
        )
    if how == "spherical" and len(prompts) != 2:
        raise BadInput(
            "there is one arc between two directions and none between more",
            where="--how spherical",
            expected="two soft prompts",
            got=len(prompts),
            do="give --how linear",
        )


def _title(prompt: SoftPrompt) -> str:
    return prompt.metadata.name or prompt.content_hash[:12]


def _origin(prompt: SoftPrompt) -> str:
    base = prompt.metadata.base
    parts = (
        base.id or base.family,
        f"{prompt.d_model} wide",
        f"{base.n_layers} layers" if base.n_layers else "",
        f"vocabulary {base.vocab_size}" if base.vocab_size else "",
    )
    return " ".join(filter(None, parts))


# What the blend says about itself ------------------------------------------------------------------------------------------


def _metadata(
    prompts: Sequence[SoftPrompt], shares: Sequence[float], how: How, created: str
) -> tuple[Metadata, list[str]]:
    known = [prompt.metadata for prompt in prompts]
    licence, notes = joined_licence([said.licence for said in known])
    rating, more = strictest([said.rating for said in known])
    weights = [1.0] * len(prompts) if how == "concatenate" else shares
    parts = [
        {"content_hash": prompt.content_hash, "tokens": prompt.n_tokens}
        | ({} if how == "concatenate" else {"weight": float(weight)})
        | ({"name": prompt.metadata.name} if prompt.metadata.name else {})
        for prompt, weight in zip(prompts, weights, strict=True)
    ]
    titles = [_title(prompt) for prompt in prompts]
    if how != "concatenate":
        titles = [f"{title} {share:.2g}" for title, share in zip(titles, shares, strict=True)]
    return Metadata(
        name=" + ".join(titles),
        author=", ".join(dict.fromkeys(said.author for said in known if said.author)),
        supported=tuple(name for name in known[0].supported if all(name in said.supported for said in known)),
        description=f"A blend ({how}) of {' and '.join(titles)}.",
        base=_common_base([said.base for said in known]),
        placement=known[0].placement,
        licence=licence,
        tags=tuple(dict.fromkeys(tag for said in known for tag in said.tags)),
        rating=rating,
        created=created,
        training={"blend": {"how": how, "of": parts}},
    ), [*notes, *more]


def joined_licence(licences: Sequence[str]) -> tuple[str, list[str]]:
    """The licence of what is made of several: all that were given hold. Notes say where they differ or one gives none."""
    given = list(dict.fromkeys(licence for licence in licences if licence))
    joined = given[0] if len(given) == 1 else " AND ".join(f"({one})" if " " in one else one for one in given)
    notes = []
    if len(given) > 1:
        notes.append(f"the licences differ, and all of them hold for the result: {', '.join(given)}")
    if given and not all(licences):
        notes.append(
            "some of the soft prompts give no licence: whether the result may be shared is for you to find out"
        )
    return joined, notes


def strictest(ratings: Sequence[Rating | Literal[""]]) -> tuple[Rating | Literal[""], list[str]]:
    """The strictest rating that was given, and a note where it is not everybody's."""
    given = [rating for rating in ratings if rating]
    if not given:
        return "", []
    kept = max(given, key=RATINGS.index)
    return kept, ([] if set(ratings) == {kept} else [f"the strictest rating is kept: {kept}"])


def _common_base(bases: Sequence[BaseRef]) -> BaseRef:
    """What all of them say alike; of their sizes, what any says."""
    said: dict[str, Any] = {}
    for item in fields(BaseRef):
        values = {getattr(base, item.name) for base in bases}
        values -= {item.default} if item.name in ("d_model", "family", "n_layers", "vocab_size") else set()
        if len(values) == 1:
            said[item.name] = values.pop()
    return BaseRef(**said)
