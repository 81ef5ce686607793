"""The engine's tokens a second with prompts whose attention is held, against the same prompts not held.

Greedy, 64 new tokens a stream after openings of 24, 96 or 384 tokens, prefill included: one stream, and 16 with a prompt each.

    python -m benchmarks.hold --rounds 5
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.engine import NEW, STREAMS, Side, prompt
from benchmarks.measuring import alternate, arguments, paired_ratio, save
from sordino.models.base_model import load
from sordino.prompts.attention import PromptAttention

HELD = PromptAttention(hold=64)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    plain = [prompt(base, seed) for seed in range(STREAMS)]
    held = [one.with_metadata(attention=HELD) for one in plain]
    rows: list[dict[str, Any]] = []
    for streams, read in ((1, 24), (1, 384), (STREAMS, 24), (STREAMS, 96)):
        seconds = alternate(
            {
                "not held": Side(base, plain[:streams], read=read),
                "held": Side(base, held[:streams], read=read),
            },
            options.rounds,
            base.device,
        )
        row: dict[str, Any] = {"rows": f"{streams} streams, {read} tokens read"}
        for name, taken in seconds.items():
            row[f"{name}, tokens/s"] = round(streams * NEW / statistics.median(taken), 1)
        row["held/not held"] = round(paired_ratio(seconds["not held"], seconds["held"]), 3)
        rows.append(row)
        save("hold", base.device, rows)


if __name__ == "__main__":
    main()
