"""What the model's own answers among the rows do to a soft prompt: how many instructions it follows, how much of the voice it has.

For each packaged voice, prompts are trained as `benchmarks.holding` trains them (50 steps of 2 rows), with `--answers off` and with
`--answers 0.5`. Then: how many of forty instructions are followed (`benchmarks.instructions`);
the loss on held-out texts of the voice, and the gain over no soft prompt after nothing and after 768 tokens of packaged texts, with
the file's own hold; the loss on a text in another voice less the base model's (damage). What is done is stored under --folder.

    python -m benchmarks.answering --threads 1 --voices keeper gazette noir --seeds 0 1
    python -m benchmarks.answering --threads 1 --voices keeper --kind embedding
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.holding import DESCRIPTIONS, NOTHING, Plan, Voice
from benchmarks.instructions import read_instructions
from benchmarks.measuring import arguments, save
from benchmarks.quality import trained
from benchmarks.stages import Stages
from benchmarks.writers import Writer, answers, mean_nll
from sordino.evaluation.conditions import DEFAULT_BASELINES
from sordino.evaluation.config import DistanceConfig, EvaluateConfig
from sordino.evaluation.distance import measure_distance
from sordino.evaluation.distance_plan import plan_distance
from sordino.evaluation.off_domain import packaged_text
from sordino.formats import read_single
from sordino.models.base_model import load, training_dtype
from sordino.texts.examples import Example
from sordino.training.config import RATES, Kind

# As benchmarks.holding judges them.
HELDOUT, ELSEWHERE = 512, 512
DISTANCE = EvaluateConfig(distance=DistanceConfig((0, 768), ("foreign",), limit=512, parts=1))


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=Path("runs/answering"), help="where stages are stored")
    parser.add_argument("--voices", nargs="*", default=list(DESCRIPTIONS), choices=list(DESCRIPTIONS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--kind", default="kv", choices=list(RATES))
    parser.add_argument("--shares", nargs="*", type=float, default=[0.0, 0.5], help="what --answers is")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=training_dtype(options.dtype, options.device), device=options.device)
    rows: list[dict[str, Any]] = []
    for name in options.voices:
        voice = Voice(name, base, Plan(), Stages(options.folder / name))
        rows.append({"voice": name, **voice.stages.of(NOTHING, lambda voice=voice: measured(voice, Writer("", base)))})
        for seed in options.seeds:
            for share in options.shares:
                rows.append(
                    {"voice": name, "seed": seed, "answers": share, **with_share(voice, options.kind, seed, share)}
                )
                print(rows[-1], flush=True)
    save(f"answering-{options.kind}", base.device, rows)


def with_share(voice: Voice, kind: Kind, seed: int, share: float) -> dict[str, Any]:
    """A prompt that is trained with this share of answers, and what is measured of it."""
    name = f"{kind} {share:g} seed {seed}"
    file = voice.stages.folder / f"{name}{'.kv' if kind == 'kv' else ''}.zip"
    cost = voice.stages.cost(
        f"training {name}", file, lambda: trained(voice.prepared(kind, seed=seed, answers=share))[0].save(file)
    )
    prompt = read_single(file)
    found: dict[str, Any] = voice.stages.of(name, lambda: measured(voice, Writer(name, voice.base, prompt)))
    return {**found, "validation": prompt.metadata.training["validation_nll"], "cpu_seconds": cost.cpu_seconds}


def measured(voice: Voice, writer: Writer) -> dict[str, Any]:
    asked = read_instructions()
    elsewhere = packaged_text([], voice.heldout)
    assert elsewhere is not None
    said = answers(writer, asked)
    found = {
        "followed": sum(one.followed(answer) for one, answer in zip(asked, said, strict=True)),
        "heldout": round(mean_nll(writer, voice.windows(voice.heldout, HELDOUT)), 3),
        "damage": round(_more(voice, writer, voice.windows(elsewhere[1], ELSEWHERE)), 3),
    }
    return found | (_gains(voice, writer) if writer.prompt is not None else {})


def _more(voice: Voice, writer: Writer, windows: Sequence[Example]) -> float:
    """The loss beyond the base model's."""
    return mean_nll(writer, windows) - mean_nll(Writer(NOTHING, voice.base), windows)


def _gains(voice: Voice, writer: Writer) -> dict[str, float]:
    prompts: Any = {writer.name: writer.prompt}
    assert DISTANCE.distance is not None
    plan = plan_distance(voice.base, prompts, voice.heldout, DISTANCE.distance, DEFAULT_BASELINES, seed=0)
    sides = [one for one in plan.judged if one.condition.kind in ("no prompt", "soft prompt") and not one.changed]
    (line,) = measure_distance(voice.base, replace(plan, judged=tuple(sides)), prompts, DISTANCE).lines
    return {f"gain at {distance}": round(gain.value, 3) for distance, gain in line.gains.items()}


if __name__ == "__main__":
    main()
