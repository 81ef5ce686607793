"""Successive halving against the full grid: the held-out loss of what each would choose, and what each costs.

Twelve runs (learning rates 0.02, 0.06, 0.25, 1; from text, from single words, from random numbers; 20 tokens) on Alice, held
out Through the Looking-Glass; SmolLM2, 48 steps of 2 rows of 64. Both sides are `sordino sweep` itself; first matrices are not
counted, since they are the same. Each side's choice is its lowest validation loss; the full grid's best is the lowest held-out
loss of any of its runs, which no one could have chosen. Cost in steps times rows, and in seconds of training and evaluating (on
a CPU processor time, which other programs do not affect; on a GPU wall time). docs/sweeps.md shows the full grid's plots.

    python -m benchmarks.sweep            about 14 minutes on 2 cores
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import arguments, save
from sordino.models.base_model import BaseModel, load
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.sweep.grid import Spec
from sordino.training.sweep.pictures import pictures
from sordino.training.sweep.results import ModelOutcome, claims, cost
from sordino.training.sweep.running import Member, measure_members, members_of, train_members

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
REST = TrainConfig(steps=48, batch=2, row_tokens=64)


def main() -> None:
    parser = arguments(__doc__ or "", corpus="carroll")
    parser.add_argument("--steps", type=int, default=REST.steps)
    options = parser.parse_args()
    if not options.corpus.exists():
        raise SystemExit(f"skipped: the corpus {options.corpus.name} is not there (--corpus)")
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    full = Spec(
        (options.model,), ("embedding",), (20,), (0.02, 0.06, 0.25, 1.0), ("data", "vocab", "random"), ("plain",), (0,),
        replace(REST, steps=options.steps), full=True, heldout_tokens=4096,
    )  # fmt: skip
    texts = TextPaths((options.corpus / "train",), (options.corpus / "heldout",))
    with tempfile.TemporaryDirectory() as folder:
        members = members_of(base, full, options.model, texts, Path(folder) / "none")
        sides = {
            side: swept(base, spec, members, Path(folder) / side)
            for side, spec in (("halving", replace(full, full=False)), ("full grid", full))
        }
    best = min(run.heldout.nll for run in sides["full grid"][0].runs if run.heldout is not None)
    rows = [row(side, outcome, seconds, best, full) for side, (outcome, seconds) in sides.items()]
    halved, whole = rows
    rows.append(
        {
            "rows": "halving / full grid",
            "heldout/best": halved["heldout/best"],
            "rows/full": round(halved["rows_trained"] / whole["rows_trained"], 3),
            "seconds/full": round(halved["seconds"] / whole["seconds"], 3),
        }
    )
    save("sweep", base.device, rows)
    for name, picture in pictures([sides["full grid"][0]]).items():
        (PICTURES / name.replace("heldout", "sweep")).write_bytes(picture)
    print(*(f"{c.claim}: {c.verdict} ({c.evidence})" for c in claims([sides["full grid"][0]])), sep="\n")


def swept(base: BaseModel, spec: Spec, members: list[Member], folder: Path) -> tuple[ModelOutcome, float]:
    folder.mkdir()
    clock = time.process_time if base.device.type == "cpu" else time.perf_counter
    began = clock()
    finished = train_members(base, spec, members, folder, on_event=lambda name, event: None)
    seconds = clock() - began
    assert finished is not None
    return measure_members(base, spec, spec.model[0], members, finished, folder), seconds


def row(side: str, outcome: ModelOutcome, seconds: float, best: float, spec: Spec) -> dict[str, Any]:
    chosen = outcome.best
    assert chosen is not None
    assert chosen.heldout is not None
    choice = chosen.choice
    return {
        "rows": side,
        "runs": len(outcome.runs),
        "chosen": f"{choice.tokens} tokens, lr {choice.lr:g}, {choice.init}",
        "validation": round(chosen.validation, 4),
        "heldout": round(chosen.heldout.nll, 4),
        "best_of_all": round(best, 4),
        "no_prompt": round(outcome.none.nll, 4),
        "heldout/best": round(chosen.heldout.nll / best, 4),
        "rows_trained": cost([outcome], spec.rest.steps, spec.rest.batch)[0],
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
