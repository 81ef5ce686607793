"""Peak memory of a training step beyond the loaded model, against PEFT: a fresh process a side.

python -m benchmarks.memory --rounds 3
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys

import psutil
import torch

from benchmarks.measuring import arguments, save
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import choose_device

STEPS = 3


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--side", choices=["sordino", "peft"], help="(internal) measure one side in this process")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.side:
        print(json.dumps(measure(options.side, options.model, options.device, options.dtype)))
        return
    used: dict[str, list[float]] = {"sordino": [], "peft": []}
    for _ in range(options.rounds):
        for side in used:
            command = [sys.executable, "-m", "benchmarks.memory", "--side", side, "--model", options.model]
            for flag in ("device", "dtype", "threads"):
                if getattr(options, flag) is not None:
                    command += [f"--{flag}", str(getattr(options, flag))]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            used[side].append(json.loads(answer))
    middle = {side: statistics.median(values) for side, values in used.items()}
    row = {
        "rows": "8 x 128, 20 virtual",
        **{f"{side}_mib": round(value) for side, value in middle.items()},
        "sordino/peft": round(middle["sordino"] / middle["peft"], 3),
    }
    save("memory", choose_device(options.device), [row])


def measure(side: str, model: str, device: str | None, dtype: str | None) -> float:
    """MiB by which STEPS training steps raise this process's peak above what it holds after loading."""
    from benchmarks.training_step import PASS_TOKENS, peft_side, whole
    from sordino.models.base_model import load
    from sordino.training.gradient import Batch, losses_and_gradients

    base = load(model, device=device, dtype=dtype)
    random = torch.Generator().manual_seed(0)
    examples = [whole(torch.randint(1000, (128,), generator=random).tolist()) for _ in range(8)]
    matrix = torch.randn(20, base.d_model, generator=random) * base.embedding_rms
    matrix.requires_grad_()
    if side == "peft":
        step, _, _ = peft_side(base, examples, 20, matrix)
    else:

        def step() -> float:
            return losses_and_gradients(base, [Batch(PrefixSource(matrix, base.placement), examples)], PASS_TOKENS)[0]

    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
        for _ in range(STEPS):
            step()
        return (torch.cuda.max_memory_allocated() - loaded) / 2**20
    loaded = psutil.Process().memory_info().rss
    for _ in range(STEPS):
        step()
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - loaded) / 2**20


if __name__ == "__main__":
    main()
