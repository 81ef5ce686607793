"""How much of a long text's effect a soft prompt of 16 vectors keeps: five character cards and five instructions of ours.

For each text: tokens of the text; the share of its gain in nats that is kept on the model's own continuations of held-out openings,
with the 95 % interval; how often the likeliest word is the one after the text (and without either); what the soft prompt costs on
a text in another voice; minutes.

    python -m benchmarks.distil                      all ten texts
    python -m benchmarks.distil --only brine verse   some of them, by name
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import sordino
from benchmarks.measuring import arguments, save
from sordino.training.distil.config import DistilConfig

TEXTS = Path(__file__).parent / "distil_texts"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", nargs="*", default=None, help="names of texts")
    parser.add_argument("--tokens", type=int, default=DistilConfig.tokens)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = sordino.load_model(options.model, dtype=options.dtype, device=options.device)
    files = [file for file in sorted(TEXTS.glob("*/*")) if options.only is None or file.stem in options.only]
    save("distil", model.base.device, [row(model, file, options.tokens) for file in files])


def row(model: sordino.Model, file: Path, tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        made = sordino.distil(model, file, out=Path(folder) / f"{file.stem}.zip", tokens=tokens)
        minutes = (time.monotonic() - began) / 60
    assert made.report is not None
    assert made.report.distilled is not None
    assert made.report.distilled.kept is not None
    kept, other = made.report.distilled, made.report.off_domain
    damage = None if other is None else other.line("soft prompt").nll.value - other.line("no prompt").nll.value
    return {
        "text": f"{file.parent.name}/{file.stem}",
        "text_tokens": kept.text_tokens,
        "tokens": tokens,
        "kept": round(kept.kept.value, 3),
        "interval": kept.kept.interval and [round(end, 3) for end in kept.kept.interval],
        "agreement": round(kept.agreement, 3),
        "agreement_without": round(kept.agreement_without, 3),
        "damage": None if damage is None else round(damage, 3),
        "minutes": round(minutes, 1),
    }


if __name__ == "__main__":
    main()
