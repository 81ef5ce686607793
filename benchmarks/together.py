"""Eight runs trained together against the same eight one after another, and how many copies of the base model that takes.

A round is one step of all eight runs: together (`losses_and_gradients`) against eight steps alone, on
the same matrices and examples; losses and gradients are compared before anything is timed. Four rows of 128 a run on a GPU; on
a CPU that and one row of 64, where a pass holds many runs. Optimiser and validation are left out: they are the same on both sides.

Copies of the base model are measured in separate processes: the memory that loading takes, and the peak of eight whole runs
beyond that of one, in models.

    python -m benchmarks.together         about 6 minutes on 2 cores (3 rounds)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import alternate, arguments, medians, paired_ratio, save
from benchmarks.training_step import whole
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel, load
from sordino.models.memory import peak_bytes
from sordino.training.config import TrainConfig
from sordino.training.gradient import Batch, group_pass_tokens, losses_and_gradients
from sordino.training.loop import Run, RunGroup, TrainSet, train_group

KEEPER = Path(__file__).parents[1] / "src/sordino/data/keeper/train"
RUNS, TOKENS = 8, 20
ROWS = ((1, 64), (4, 128))
# Float32 rounds; bfloat16 rounds far more.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.05}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.set_defaults(rounds=3)
    parser.add_argument("--memory-of", type=int, help="(internal) the peak of so many runs in this process")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    if options.memory_of is not None:
        print(json.dumps(peak_of(base, options.memory_of)))
        return
    rows = []
    for count, length in ROWS:
        rows.append(step_row(base, count, length, options.rounds))
        # After every row, so that an interrupted run keeps its results.
        save("together", base.device, rows)
    rows.append(memory_row(base, options))
    save("together", base.device, rows)


def step_row(base: BaseModel, count: int, length: int, rounds: int) -> dict[str, Any]:
    """One step of RUNS runs, together and one after another."""
    ids = ids_of(base, RUNS * count * length)
    usual = TrainConfig().pass_tokens
    room = group_pass_tokens(base, usual)
    runs = []
    for k in range(RUNS):
        own = ids[k * count * length : (k + 1) * count * length]
        examples = [whole(own[at : at + length]) for at in range(0, len(own), length)]
        runs.append(Batch(PrefixSource(start(base, ids[k * 31 :]).requires_grad_(), base.placement), examples))

    def clear() -> None:
        for run in runs:
            run.source.matrix_PW.grad = None

    def together() -> list[float]:
        clear()
        return losses_and_gradients(base, runs, pass_tokens=room)

    def alone() -> list[float]:
        clear()
        return [losses_and_gradients(base, [run], pass_tokens=usual)[0] for run in runs]

    losses, gradients = together(), [run.source.matrix_PW.grad for run in runs]
    expected = alone()
    off = max(
        float((ours - run.source.matrix_PW.grad).norm() / run.source.matrix_PW.grad.norm())
        for ours, run in zip(gradients, runs, strict=True)
        if ours is not None and run.source.matrix_PW.grad is not None
    )
    if off > TOLERANCE[base.dtype]:
        raise SystemExit(f"{count} x {length}: a gradient is {off:.1e} off the one alone; losses {losses}, {expected}")
    seconds = alternate({"together": together, "alone": alone}, rounds, base.device)
    middle = medians(seconds)
    return {
        "rows": f"{RUNS} runs, {count} x {length} each",
        "pass_tokens": room,
        "together_s": round(middle["together"], 4),
        "one_after_another_s": round(middle["alone"], 4),
        "alone/together": round(paired_ratio(seconds["alone"], seconds["together"]), 3),
        "gradient_difference": f"{off:.1e}",
    }


def memory_row(base: BaseModel, options: Any) -> dict[str, Any]:
    """What eight whole runs hold more than one, in base models."""
    peaks = {}
    for count in (1, RUNS):
        command = [sys.executable, "-m", "benchmarks.together", "--memory-of", str(count), "--model", options.model]
        for flag in ("device", "dtype", "threads"):
            if getattr(options, flag) is not None:
                command += [f"--{flag}", str(getattr(options, flag))]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        peaks[count] = json.loads(answer)
    size = sum(p.numel() * p.element_size() for p in base.network.parameters())
    return {
        "rows": f"memory of {RUNS} runs",
        "model_mib": round(size / 2**20),
        "peak_of_1_mib": round(peaks[1] / 2**20),
        f"peak_of_{RUNS}_mib": round(peaks[RUNS] / 2**20),
        "more, in models": round((peaks[RUNS] - peaks[1]) / size, 2),
    }


def peak_of(base: BaseModel, count: int) -> int:
    """Peak bytes of two steps of `count` runs of 2 rows of 128, one pass of the usual size for either."""
    ids = ids_of(base, 128 * 40)
    examples = [whole(ids[at : at + 128]) for at in range(0, len(ids) - 127, 128)]
    config = TrainConfig(tokens=TOKENS, steps=2, batch=8 if count == 1 else 2, sample_every=9, patience=0)
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for k in range(count):
            (Path(folder) / f"{k}").mkdir()
            data = TrainSet(examples[:32], examples[32:34], "")
            runs.append(Run(f"{k}", data, config, Path(folder) / f"{k}", start(base, ids[k:])))
        for _ in train_group(base, RunGroup(runs, Path(folder))):
            pass
    return torch.cuda.max_memory_allocated() if base.device.type == "cuda" else peak_bytes()


def start(base: BaseModel, ids: list[int]) -> torch.Tensor:
    return base.embed(torch.tensor(ids[:TOKENS], device=base.device)).detach().float().cpu()


def ids_of(base: BaseModel, count: int) -> list[int]:
    """The first tokens of the packaged corpus, over again where it ends."""
    ids = [i for file in sorted(KEEPER.rglob("*.txt")) for i in base.encode(file.read_text(encoding="utf-8"))]
    return (ids * (count // len(ids) + 1))[:count]


if __name__ == "__main__":
    main()
