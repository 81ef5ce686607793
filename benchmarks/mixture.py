"""What a mixture is worth on data in several voices: held-out loss of each component, ensemble, mixture and gate.

A soft prompt is trained briefly on each of three corpora (carroll, austen, bierce: two novels and a dictionary of jokes), by
`sordino.training` with its defaults. The mixed data hold as many tokens of each. Weights are fitted on the mixed training texts (by
EM; for the gate, with its penalty chosen on validation texts), and everything is measured on held-out works: the same tokens,
paired intervals over blocks of eight examples of a work, and over single entries of the dictionary. About ten minutes on two cores.

    python -m benchmarks.mixture
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import arguments, save
from benchmarks.quality import trained
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import SoftPrompt
from sordino.texts.examples import Example
from sordino.texts.splits import Splits
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.mixture.config import FitConfig
from sordino.training.mixture.fit import FittedMixture, MixtureTexts, fit
from sordino.training.mixture.fit import prepare as prepare_mixture
from sordino.training.mixture.report import TITLES
from sordino.training.run import prepare

# Voice: its training and its held-out texts, in the folder of corpora.
VOICES = {
    "carroll": ("carroll/train", "carroll/heldout"),
    "austen": ("austen/train", "austen/heldout"),
    "bierce": ("bierce/train.jsonl", "bierce/heldout.jsonl"),
}
BLOCK = 8


def main() -> None:
    options = options_of()
    if options.threads:
        torch.set_num_threads(options.threads)
    missing = [name for name in chain.from_iterable(VOICES.values()) if not (options.data / name).exists()]
    if missing:
        raise SystemExit(f"skipped: {', '.join(missing)} not in {options.data.name} (--data)")
    base = load(options.model, dtype=options.dtype, device=options.device)
    prompts = [(voice, component(base, options.data, voice, options.steps)) for voice in VOICES]
    config = FitConfig(limit=0, gate="always")
    data = mixed(base, options.data, config, options.tokens)
    fitted = fit(base, prompts, data, config)
    save("mixture", base.device, rows(fitted))


def options_of() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    default = Path(__file__).parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=default, help="folder with the corpora carroll, austen and bierce")
    parser.add_argument("--steps", type=int, default=25, help="training steps of every component")
    parser.add_argument(
        "--tokens", type=int, default=6144, help="tokens of each voice that are trained on and held out"
    )
    return parser.parse_args()


def component(base: BaseModel, data: Path, voice: str, steps: int) -> SoftPrompt:
    learned, heldout = VOICES[voice]
    prepared = prepare(base, TrainConfig(steps=steps), TextPaths((data / learned,), (data / heldout,)))
    return trained(prepared)[0]


def mixed(base: BaseModel, data: Path, config: FitConfig, tokens: int) -> MixtureTexts:
    """About `tokens` of each voice to fit and as many to judge, a third of that to validate."""
    parts = [prepare_mixture(base, [data / learned], [data / held], config) for learned, held in VOICES.values()]
    return MixtureTexts(
        Splits(
            tuple(chain.from_iterable(part.splits.train for part in parts)),
            tuple(chain.from_iterable(part.splits.validation for part in parts)),
            tuple(chain.from_iterable(part.splits.heldout for part in parts)),
            "each voice by itself",
            (),
        ),
        tuple(chain.from_iterable(spread(part.train, tokens) for part in parts)),
        tuple(chain.from_iterable(spread(part.validation, tokens // 3) for part in parts)),
        tuple(chain.from_iterable(spread(part.heldout, tokens) for part in parts)),
        (),
    )


def spread(examples: Sequence[Example], tokens: int) -> list[Example]:
    """Examples from all over the texts, `tokens` of them; of a work that is one piece, blocks of neighbours are pieces."""
    total = sum(len(example.ids) for example in examples)
    kept = min(len(examples), max(1, len(examples) * tokens // total))
    chosen = [examples[at * len(examples) // kept] for at in range(kept)]
    if len({example.piece for example in chosen}) > kept // BLOCK:
        return chosen
    return [replace(example, piece=f"{example.piece}, block {at // BLOCK}") for at, example in enumerate(chosen)]


def rows(fitted: FittedMixture) -> list[dict[str, Any]]:
    report = fitted.report
    found: list[dict[str, Any]] = []
    for line in report.lines:
        less = line.less_mixture
        found.append(
            {
                "mixture": line.label if line.kind == "component" else TITLES[line.kind],
                "weight": None if line.weight is None else round(line.weight, 3),
                "nll": round(line.nll.value, 4),
                "interval": line.nll.interval and [round(end, 4) for end in line.nll.interval],
                "less_mixture": [round(less.value, 4), *(round(end, 4) for end in less.interval or ())],
            }
        )
    gate = fitted.gate
    found.append(
        {
            "tokens": report.tokens,
            "units": report.units,
            "effective_components": round(report.effective, 2),
            "gate_won": report.gate_won,
            "gate_strength": gate and float(f"{gate.strength:.3g}"),
            "em_steps": fitted.weights.steps,
            "em_short_by": fitted.weights.short_by,
        }
    )
    return found


if __name__ == "__main__":
    main()
