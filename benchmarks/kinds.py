"""A KV prompt beside an embedding prompt: a training step of each, behind nothing and behind 256 tokens of other text, and the time
of `sordino evaluate --distance`.

Both kinds begin as the same excerpt, so their first losses agree, or nothing is timed. A step is what `sordino train` runs, with
hold. The distances are those that a quick measurement after training has, on the packaged keeper's held-out entries.

    python -m benchmarks.kinds --rounds 5
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import alternate, arguments, medians, paired_ratio, save
from benchmarks.training_step import PASS_TOKENS, whole
from sordino.evaluation.conditions import DEFAULT_BASELINES
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.distance import measure_distance
from sordino.evaluation.distance_plan import plan_distance
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import Metadata
from sordino.texts.examples import Example
from sordino.texts.heldout import read_heldout
from sordino.training.config import RATES, TrainConfig
from sordino.training.contexts import neutral_ids
from sordino.training.form import form_of
from sordino.training.gradient import Batch, losses_and_gradients

KEEPER = Path(__file__).parents[1] / "src" / "sordino" / "data" / "keeper"
CONTEXT = 256
DISTANCE = DistanceConfig((0, 256, 768), ("foreign",))
WORDS = "The keeper wrote in the log. "


def main() -> None:
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    ids = [i for file in sorted(KEEPER.rglob("[0-9]*.txt")) for i in base.encode(file.read_text())]
    rows: list[dict[str, Any]] = []
    for count, length, tokens in [(8, 128, 20), (4, 128, 20), (4, 128, 64)]:
        examples = [whole(ids[i * length : (i + 1) * length]) for i in range(count)]
        rows.append(steps(base, f"{count} x {length}, {tokens} virtual", examples, tokens, options.rounds))
        # After every row, so that an interrupted run keeps its results.
        save("kinds", base.device, rows)
    rows.append(distances(base, 20, options.rounds))
    save("kinds", base.device, rows)


def steps(base: BaseModel, name: str, examples: Sequence[Example], tokens: int, rounds: int) -> dict[str, Any]:
    """A step of each kind, behind nothing and behind CONTEXT tokens that its rows share."""
    between = tuple(neutral_ids(base)[:CONTEXT])
    sides: dict[str, Callable[[], float]] = {}
    for kind in RATES:
        form, matrix = start(base, kind, tokens)
        matrix.requires_grad_()

        def step(form: Any, matrix: torch.Tensor, context: tuple[int, ...]) -> float:
            matrix.grad = None
            return losses_and_gradients(base, [Batch(form.source(matrix, context), examples)], PASS_TOKENS)[0]

        sides[kind] = partial(step, form, matrix, ())
        sides[f"{kind} behind {CONTEXT}"] = partial(step, form, matrix, between)
    for behind in ("", f" behind {CONTEXT}"):
        first, other = (sides[kind + behind]() for kind in RATES)
        if abs(first - other) > (1e-3 if base.dtype == torch.float32 else 2e-2):
            raise SystemExit(f"{name}: the losses differ, {first} and {other}: the kinds do not begin alike")
    seconds = alternate(sides, rounds, base.device)
    return {
        "rows": name,
        **{f"{side}, s": round(middle, 4) for side, middle in medians(seconds).items()},
        "kv/embedding": round(paired_ratio(seconds["kv"], seconds["embedding"]), 3),
        **{
            f"{kind}, behind {CONTEXT}/behind nothing": round(
                paired_ratio(seconds[f"{kind} behind {CONTEXT}"], seconds[kind]), 3
            )
            for kind in RATES
        },
    }


def distances(base: BaseModel, tokens: int, rounds: int) -> dict[str, Any]:
    """The time of DISTANCE, of each kind."""
    heldout = read_heldout([KEEPER / "heldout"], ()).pieces
    settings = EvaluateConfig(pass_tokens=PASS_TOKENS, distance=DISTANCE)
    sides = {}
    for kind in RATES:
        form, matrix = start(base, kind, tokens)
        prompts = {kind: form.prompt(matrix, Metadata(name=kind))}
        plan = plan_distance(base, prompts, heldout, DISTANCE, DEFAULT_BASELINES, seed=0)
        sides[kind] = partial(measure_distance, base, plan, prompts, settings)
    seconds = alternate(sides, rounds, base.device)
    return {
        "rows": f"--distance {','.join(map(str, DISTANCE.distances))}, {tokens} virtual",
        **{f"{side}, s": round(middle, 4) for side, middle in medians(seconds).items()},
        "kv/embedding": round(paired_ratio(seconds["kv"], seconds["embedding"]), 3),
    }


def start(base: BaseModel, kind: Any, tokens: int) -> Any:
    """What a run of this kind trains, and its first matrix."""
    form = form_of(base, TrainConfig(kind=kind, tokens=tokens, placement="start"))
    ids = torch.tensor(base.encode(WORDS * tokens)[:tokens], device=base.device)
    return form, form.matrix_of_embeds(base, base.embed(ids).detach().float().cpu()).detach()


if __name__ == "__main__":
    main()
