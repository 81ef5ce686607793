"""What was found inside soft prompts, between two of them and at shorter lengths: tables, and JSON of several together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from sordino.evaluation.analysis import inspection, kv_inspection
from sordino.evaluation.analysis.inspection import Inspection, findings
from sordino.evaluation.analysis.kv_inspection import KVInspection
from sordino.evaluation.analysis.path import BlendPath
from sordino.evaluation.analysis.pruning import Stage
from sordino.evaluation.confidence import Table

_ALIKE = {"pooled": "How alike: cosine of the mean vectors", "per token": "Mean cosine over pairs of virtual tokens"}


def inspection_table(inside: Inspection) -> Table:
    """A row for each virtual token."""
    surface, depth = inside.surface, inside.depth
    deep = ["#left out", "#attention"] if depth else []
    rows = []
    for at in range(inside.prompt.n_tokens):
        near, close = _words(surface.by_cosine[at]), _words(surface.by_distance[at])
        norms = [f"{surface.norms_P[at]:.2f}", f"{surface.percentiles_P[at]:.0f}"]
        more = [f"{depth.importance.costs[at]:+.4f}", f"{depth.attention.by_token_P[at]:.1%}"] if depth else []
        rows.append([str(at + 1), near, close, *norms, *more])
    heads = ["#", "nearest by cosine", "nearest by distance", "#norm", "#percentile", *deep]
    return Table(heads, rows, inside.label)


def inspection_sentences(inside: Inspection) -> list[str]:
    """What else was found."""
    low, middle, high = inside.surface.vocabulary
    lines = [f"Norms of the vocabulary's words: half below {middle:.2f}, 90 % from {low:.2f} to {high:.2f}."]
    if inside.depth:
        lines += findings(inside.depth)
        if not (attention := inside.prompt.metadata.attention).plain:
            lines.append(f"Measured with {attention}.")
        by_layer = " ".join(f"{share:.0%}" for share in inside.depth.attention.by_layer_L)
        lines.append(f"Attention on the prompt by layer: {by_layer}")
    return lines


def _words(near: Sequence[tuple[str, float]]) -> str:
    """Without their leading spaces; an empty word, or one of white space, in quotation marks."""
    return "  ".join(f"{word.strip() or json.dumps(word)} {value:.2f}" for word, value in near)


def kv_table(inside: KVInspection) -> Table:
    """A row for each layer."""
    columns = (inside.keys_L, inside.text_keys_L, inside.values_L, inside.text_values_L)
    rows = [
        [str(layer + 1), *(f"{column_L[layer]:.2f}" for column_L in columns)]
        for layer in range(inside.prompt.shape.layers)
    ]
    return Table(["#layer", "#keys", "#keys of a text", "#values", "#values of a text"], rows, inside.label)


def similarity_tables(labels: Sequence[str], alike: Mapping[str, NDArray[Any]]) -> list[Table]:
    """By both measures. alike: similarities [K, K] by measure."""
    return [
        Table(
            ["", *(f"#{label}" for label in labels)],
            [[label, *(f"{value:.3f}" for value in row)] for label, row in zip(labels, values, strict=True)],
            _ALIKE[kind],
        )
        for kind, values in alike.items()
    ]


def to_json(
    found: Sequence[Inspection], kvs: Sequence[KVInspection], alike: Mapping[str, NDArray[Any]]
) -> dict[str, Any]:
    """All that was found inside several soft prompts, as plain JSON. alike: as in `similarity_tables`."""
    similarity = {kind.replace(" ", "_"): values.tolist() for kind, values in alike.items()}
    shown = [*map(inspection.to_json, found), *map(kv_inspection.to_json, kvs)]
    return {"soft_prompts": shown, **({"similarity": similarity} if similarity else {})}


def path_table(path: BlendPath, labels: Sequence[str], chosen: float | None) -> Table:
    """A row for each blend. labels: of the two soft prompts. chosen: the share of the second one in the blend that is written."""
    rows = []
    for at, share in enumerate(path.shares):
        losses = [f"{losses[at]:.3f}" for losses in path.losses.values()]
        mark = "written" if chosen is not None and abs(share - chosen) < 1e-9 else ""
        rows.append([f"{1 - share:.2f}", f"{share:.2f}", *losses, mark])
    rows.append(["", "", *(f"{loss:.3f}" for loss in path.without.values()), "no prompt"])
    return Table([*(f"#{label}" for label in labels), *(f"#loss on {text}" for text in path.losses), ""], rows)


def path_explanation(path: BlendPath) -> str:
    tokens = ", ".join(f"{count:,} tokens of {text}" for text, count in path.tokens.items())
    return f"Loss in nats per token, lower is better; measured on {tokens}."


def pruning_table(stages: Sequence[Stage], chosen: Stage) -> Table:
    """A row for each length."""
    held = stages[0].heldout is not None
    rows = []
    for at, stage in enumerate(stages):
        gone = sorted(set(stages[at - 1].kept) - set(stage.kept)) if at else []
        rows.append(
            [
                str(len(stage.kept)),
                ", ".join(str(position + 1) for position in gone),
                f"{stage.loss:.4f}",
                *([f"{stage.heldout:.4f}"] if held else []),
                f"{stage.judged - stages[0].judged:+.4f}" if at else "",
                "kept" if stage is chosen else "",
            ]
        )
    return Table(["#tokens", "dropped", "#loss on DATA", *(["#held-out loss"] if held else []), "#change", ""], rows)
