"""Prompt tuning on a T5, beside PEFT's and full fine-tuning, in stages that may run on different days; a JSON file a stage.

    train       a small T5 of our own (benchmarks.t5_model), kept in the user's cache: 20 minutes
    steps       seconds and peak memory of a training step, against PEFT's: rows of one length, and ragged reviews
    quality     a task with two labels: prompt tuning here, with --recipe lester and with PEFT, and full fine-tuning, equal steps
    ablations   1, 5, 20 and 100 virtual tokens, four starts, before the model learnt prefixes, ensembles: what Lester et al. claim

--task: reviews, good or bad; or authors (benchmarks.authors), which a model of our own learns more of.
With --model it is any T5 that Sordino loads, and "before the model learnt prefixes" is --before.

    python -m benchmarks.t5 --stage train                    20 minutes; steps take 2 on two idle cores
    python -m benchmarks.t5 --stage steps quality ablations
    python -m benchmarks.t5 --stage quality ablations --task authors
    python -m benchmarks.t5 --stage train steps quality ablations --minutes 0.2 --steps 3 --limit 20 --rounds 2 --dry
    python -m benchmarks.t5 --stage quality ablations --model google/t5-v1_1-small --before "" --corpus FOLDER
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from benchmarks.measuring import arguments, save
from benchmarks.t5_model import model_folder, train_model
from benchmarks.t5_steps import peak_mib, step_lines
from benchmarks.t5_tuning import Task, ablations, quality


def main() -> None:
    options = parsed()
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.corpus.exists():
        raise SystemExit(f"{options.corpus} is not there: give --corpus")
    if "train" in options.stage:
        stored(options, "train", torch.device("cpu"), train_model(options.corpus.parent, options.minutes))
    if options.stage == ["train"]:
        return
    task = Task.of(options, options.model)
    if options.side:
        print(json.dumps(peak_mib(task, options.side, options.rows, options.tokens)))
        return
    for stage, work in (("steps", step_lines), ("quality", quality), ("ablations", ablations)):
        if stage in options.stage:
            stored(options, stage, task.base.device, work(task, options))


def parsed() -> argparse.Namespace:
    parser = arguments(__doc__ or "", corpus="reviews")
    parser.set_defaults(model="")
    parser.add_argument("--stage", nargs="+", choices=["train", "steps", "quality", "ablations"], required=True)
    parser.add_argument("--minutes", type=float, default=20, help="training of the model; which one is taken later")
    parser.add_argument("--before", default=None, help='the model before it learnt prefixes ("": there is none)')
    parser.add_argument("--steps", type=int, default=300, help="of every tuning")
    parser.add_argument("--task", choices=["reviews", "authors"], default="reviews")
    parser.add_argument("--limit", type=int, default=0, help="held-out rows (0: all of them)")
    parser.add_argument("--dry", action="store_true", help="write no results")
    for name in ("side", "rows", "tokens"):
        parser.add_argument(f"--{name}", default="", help="(internal) of a process that measures memory")
    options = parser.parse_args()
    if options.before is None:
        options.before = "" if options.model else str(model_folder(options.minutes, "span-corruption"))
    options.model = options.model or str(model_folder(options.minutes, "prefix-lm"))
    return options


def stored(options: argparse.Namespace, stage: str, device: torch.device, rows: list[dict[str, Any]]) -> None:
    if options.dry:
        print(json.dumps(rows, indent=1))
    else:
        named = stage if options.task == "reviews" else f"{stage}-{options.task}"
        save(f"t5-{named}", device, rows)


if __name__ == "__main__":
    main()
