"""Base models that people may want, with the facts that decide about them: sizes, licence, what they take.

A list of our own (data/models.json) of models that Sordino runs, besides the bundled ones. Nothing here asks the network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sordino.errors import ModelError
from sordino.models import hub
from sordino.models.bundled import BUNDLED
from sordino.models.names import resolve
from sordino.models.sizes import ModelSizes, sizes_of
from sordino.prompts.fit import Stated, are_alike, plain_name
from sordino.prompts.soft_prompt import BaseRef


@dataclass(frozen=True)
class KnownModel:
    """name: for `--model`. title: for people. sizes: of its configuration. parameters: tied weights counted once.

    download: bytes. gated: the Hub asks for its licence to be accepted first. aliases: what files call it besides, as `plain_name`.
    """

    name: str
    title: str
    sizes: BaseRef
    parameters: int
    download: int
    licence: str
    gated: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suggestion:
    """A base model for a soft prompt. name: for `--model`. download: bytes; 0 where it is on this machine, None where unknown."""

    name: str
    title: str
    download: int | None


@cache
def catalogue() -> Mapping[str, KnownModel]:
    """By name: the bundled models, then those of the Hub, the smallest first."""
    known = [
        KnownModel(one.name, one.title, one.sizes, one.parameters, one.megabytes * 1_000_000, one.licence)
        for one in BUNDLED.values()
    ]
    text = resources.files("sordino").joinpath("data", "models.json").read_text(encoding="utf-8")
    for row in json.loads(text):
        sizes = BaseRef(row["id"], row["family"], row["d_model"], row["n_layers"], row["vocab_size"])
        known.append(
            KnownModel(
                row["id"],
                row["title"],
                sizes,
                row["parameters"],
                row["download_mb"] * 1_000_000,
                row["licence"],
                row.get("gated", False),
                tuple(row.get("aliases", ())),
            )
        )
    return {one.name: one for one in known}


def sizes_here() -> dict[str, ModelSizes]:
    """The sizes of the bundled models, and of those of the Hub that are on this machine, by name."""
    known: dict[str, ModelSizes] = {}
    for name in [*BUNDLED, *hub.downloaded()]:
        # What is there in part, or is no language model, is not for use.
        with suppress(ModelError):
            known[name] = sizes_of(name)
    return known


def fitting_here(parts: Sequence[Stated], here: Mapping[str, ModelSizes]) -> list[str]:
    """The names of those models, as of `sizes_here`, that a soft prompt, or a mixture by its components, may fit."""
    return [name for name, sizes in here.items() if sizes.fit(parts).kind != "no"]


def suggestion(parts: Sequence[Stated], here: Mapping[str, ModelSizes]) -> Suggestion | None:
    """The base model that a soft prompt, or a mixture by its components, was made for, as far as its file tells.

    here: as of `sizes_here`.
    """
    for name, sizes in here.items():
        if sizes.fit(parts).kind in ("exact", "same family"):
            return _suggested(name, here)
    for part in parts:
        for name in _candidates(part):
            known = ModelSizes(name, catalogue()[name].sizes) if name in catalogue() else here.get(name)
            if known is None or known.fit(parts).kind != "no":
                return _suggested(name, here)
    return None


def _suggested(name: str, here: Mapping[str, ModelSizes]) -> Suggestion:
    known = catalogue().get(name)
    # The sizes of a bundled model are known before it is there.
    bundled = resolve(name).path if name in BUNDLED else None
    is_here = name in here if bundled is None else bundled.is_file()
    return Suggestion(name, known.title if known else name, 0 if is_here else known.download if known else None)


def _candidates(part: Stated) -> Iterable[str]:
    """Names for the base model that a file states: first of models in the catalogue, then ids of the Hub, unchanged. For a file
    that states none, the only model in the catalogue of its width."""
    stated = [name for name in (part.metadata.base.id, *part.metadata.supported) if name]
    for name, known in catalogue().items():
        ours = {plain_name(known.sizes.id), plain_name(name), *known.aliases}
        widths_agree = part.d_model in (0, known.sizes.d_model)
        if widths_agree and any(plain_name(one) in ours for one in stated):
            yield name
    for name, known in catalogue().items():
        # Fine-tunes are called after what they were made from.
        if part.d_model == known.sizes.d_model and any(
            are_alike(plain_name(one), plain_name(known.sizes.id)) for one in stated
        ):
            yield name
    alone = [name for name, known in catalogue().items() if known.sizes.d_model == part.d_model]
    if not stated and len(alone) == 1:
        # The files of 2021 name no model, and those of GPT-2 are as wide as no other that we know.
        yield alone[0]
    for name in stated:
        with suppress(ModelError):
            if "/" in name and resolve(name).kind == "hub":
                yield name
