"""Inspection, blends and pruning of the packaged soft prompts on held-out texts: pictures of docs/inspect.md, blend.md, prune.md.

    python -m benchmarks.analysis                all three parts; under 8 minutes on two cores with SmolLM2
    python -m benchmarks.analysis --only blend   one of inside, blend, prune

inside   all three packaged soft prompts, each on its own held-out text
blend    from the keeper's log to Port Dolor, linear and spherical, on both held-out texts
prune    the keeper's log down to one virtual token: chosen on training text, measured on held-out text; beside it the same lengths
         cut off at the end instead, which is what pruning has to beat
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import arguments, save
from sordino.evaluation.analysis.inspection import Inspection, depth_of, findings, surface_of
from sordino.evaluation.analysis.losses import Passage, losses_of, passage_of
from sordino.evaluation.analysis.path import path_between
from sordino.evaluation.analysis.pictures import inside_figure, path_figure, pruning_figure
from sordino.evaluation.analysis.pruning import stages_of, within
from sordino.evaluation.config import BlendConfig, InspectConfig, PruneConfig
from sordino.evaluation.off_domain import own_text
from sordino.evaluation.pictures import rendered
from sordino.formats import read
from sordino.models.base_model import BaseModel, load
from sordino.prompts.similarity import similarity_map
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.reading import read_pieces

ROOT = Path(__file__).parents[1]
DATA = ROOT / "src" / "sordino" / "data"
PICTURES = ROOT / "docs" / "pictures"
PASS_TOKENS, ROW_TOKENS = 4096, 128


def main() -> None:
    parser = arguments("what is inside the packaged soft prompts, between two of them, and left of one")
    parser.add_argument("--only", choices=["inside", "blend", "prune"])
    given = parser.parse_args()
    base = load(given.model, device=given.device, dtype=given.dtype)
    parts: dict[str, Callable[[BaseModel], list[dict[str, Any]]]] = {"inside": inside, "blend": blend, "prune": prune}
    for name, part in parts.items():
        if given.only in (None, name):
            began = time.monotonic()
            rows = part(base)
            print(f"{name}: {time.monotonic() - began:.0f} s")
            save(f"analysis-{name}", base.device, rows)


def packaged(name: str) -> SoftPrompt:
    return read(DATA / "prompts" / f"{name}.zip")


def passage(base: BaseModel, folder: str, limit: int) -> Passage:
    return passage_of(base, read_pieces([DATA / folder]).pieces, row_tokens=ROW_TOKENS, limit=limit)


def inside(base: BaseModel) -> list[dict[str, Any]]:
    found, rows = [], []
    for name in ("keeper", "port-dolor", "village-gazette"):
        prompt = packaged(name)
        depth = depth_of(
            base, prompt, own_text(prompt), InspectConfig(limit=1024, row_tokens=ROW_TOKENS, pass_tokens=PASS_TOKENS)
        )
        found.append(Inspection(name, prompt, surface_of(base, prompt), depth))
        for line in findings(depth):
            print(f"  {name}: {line}")
        rows.append(
            {
                "prompt": name,
                "tokens": depth.importance.tokens,
                "loss": round(depth.importance.loss, 4),
                "without": round(depth.importance.without, 4),
                "left_out": [round(cost, 4) for cost in depth.importance.costs],
                "attention_by_layer": [round(float(share), 3) for share in depth.attention.by_layer_L],
                "norms": [round(float(norm), 2) for norm in found[-1].surface.norms_P],
                "percentiles": [round(float(place), 1) for place in found[-1].surface.percentiles_P],
            }
        )
    alike = similarity_map([one.prompt for one in found], "pooled")
    rows.append(
        {"prompt": "cosine of the mean vectors", "similarity": [[round(v, 3) for v in row] for row in alike.tolist()]}
    )
    write("inside", rendered(inside_figure(found[:1]), ".png"))
    write("inside-several", rendered(inside_figure(found, alike), ".png"), keep=False)
    return rows


def blend(base: BaseModel) -> list[dict[str, Any]]:
    first, second = packaged("keeper"), packaged("port-dolor")
    passages = {
        "the keeper's log": passage(base, "keeper/heldout", 2048),
        "Port Dolor": passage(base, "noir/heldout", 2048),
    }
    rows = []
    for how in ("linear", "spherical"):
        path = path_between(base, first, second, passages, BlendConfig(how, pass_tokens=PASS_TOKENS))  # type: ignore[arg-type]
        picture = rendered(path_figure(path, "the keeper's log", "Port Dolor"), ".png")
        write("blend" if how == "linear" else f"blend-{how}", picture, keep=how == "linear")
        for text, losses in path.losses.items():
            rows.append(
                {
                    "how": how,
                    "text": text,
                    "tokens": path.tokens[text],
                    "losses": [round(loss, 4) for loss in losses],
                    "without": round(path.without[text], 4),
                }
            )
    return rows


def prune(base: BaseModel) -> list[dict[str, Any]]:
    prompt = packaged("keeper")
    chooses, heldout = passage(base, "keeper/train", 512), passage(base, "keeper/heldout", 2048)
    stages = stages_of(base, prompt, chooses, heldout, PruneConfig(block=1, pass_tokens=PASS_TOKENS))
    cut = losses_of(
        base,
        [prompt.matrix[: len(stage.kept)] for stage in stages],
        prompt.metadata.placement,
        heldout,
        pass_tokens=PASS_TOKENS,
    )
    write("prune", rendered(pruning_figure(stages, within(stages, 0.01)), ".png"))
    return [
        {
            "tokens": len(stage.kept),
            "chose": round(stage.loss, 4),
            "heldout": round(stage.judged, 4),
            "first_ones_heldout": round(float(loss), 4),
            "kept": [at + 1 for at in stage.kept],
        }
        for stage, loss in zip(stages, cut, strict=True)
    ]


def write(name: str, picture: bytes, *, keep: bool = True) -> None:
    """keep: among the documents' pictures. Others go to runs/, which git ignores."""
    folder = PICTURES if keep else ROOT / "runs" / "analysis"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(picture)
    print(f"  {(folder / name).relative_to(ROOT)}.png, {len(picture) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
