"""A training step of benchmarks.t5 against PEFT's: seconds, and peak memory in a process of its own.

Positions set the floor: both sides run the linear layers' products for each position that they hold, and PEFT pads rows to the
longest. 32 reviews with 20 virtual tokens are 3,584 positions there and 2,083 here (1,904 without padding).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measuring import alternate, medians, paired_ratio
from benchmarks.t5_model import padded
from benchmarks.t5_tuning import Task, peft_model
from sordino.forward.sources import PrefixSource
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece
from sordino.training.config import TrainConfig
from sordino.training.gradient import Batch, losses_and_gradients

PASS_TOKENS = TrainConfig().pass_tokens
STEP_ROWS = ("8x128", "ragged 32")


def step_lines(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds, both sides in turn; peak memory beyond the loaded model, a process a side."""
    lines = []
    for rows, tokens in itertools.product(STEP_ROWS, (20, 100)):
        sides = {side: step_of(task, side, rows, tokens) for side in ("sordino", "peft")}
        losses = {side: step() for side, step in sides.items()}
        if max(losses.values()) - min(losses.values()) > 1e-3:
            raise SystemExit(f"{rows}: the losses differ, {losses}")
        seconds = alternate(sides, options.rounds, task.base.device)
        memory = {side: measured_apart(options, side, rows, tokens) for side in sides}
        lines.append(
            {
                "rows": rows,
                "virtual tokens": tokens,
                **{f"{side}_s": round(value, 4) for side, value in medians(seconds).items()},
                "peft/sordino": round(paired_ratio(seconds["peft"], seconds["sordino"]), 2),
                **{f"{side}_mib": round(value, 1) for side, value in memory.items()},
                "sordino/peft memory": round(memory["sordino"] / memory["peft"], 2),
            }
        )
        print(lines[-1], flush=True)
    return lines


def step_of(task: Task, side: str, rows: str, tokens: int) -> Callable[[], float]:
    base, examples = task.base, step_rows(task)[rows]
    random = torch.Generator().manual_seed(0)
    matrix = (torch.randn(tokens, base.d_model, generator=random) * base.embedding_rms).requires_grad_()
    if side == "sordino":

        def ours() -> float:
            matrix.grad = None
            return losses_and_gradients(base, [Batch(PrefixSource(matrix, "start"), examples)], PASS_TOKENS)[0]

        return ours
    model, weight = peft_model(task, matrix.detach())
    batch = padded(base, examples)

    def theirs() -> float:
        weight.grad = None
        loss = model(**batch).loss
        loss.backward()
        return float(loss.detach())

    return theirs


def step_rows(task: Task) -> dict[str, list[Example]]:
    """By name: 8 rows of 64 tokens in and 64 out; 32 reviews."""
    text = Piece("a", "text", " ".join(piece.words for piece in task.training[:200]))
    whole = make_examples([text], task.base, max_tokens=128).examples
    level = [replace(example, input=64, labelled=(False,) * 64 + (True,) * 64) for example in whole[:8]]
    return {"8x128": level, "ragged 32": list(make_examples(task.training[:32], task.base, max_tokens=128).examples)}


def measured_apart(options: argparse.Namespace, side: str, rows: str, tokens: int) -> float:
    command = [sys.executable, "-m", "benchmarks.t5", "--stage", "steps", "--model", options.model]
    command += ["--side", side, "--rows", rows, "--tokens", str(tokens), "--corpus", str(options.corpus)]
    for flag in ("device", "dtype", "threads"):
        if getattr(options, flag) is not None:
            command += [f"--{flag}", str(getattr(options, flag))]
    answers = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)]
    return statistics.median(float(json.loads(answer.splitlines()[-1])) for answer in answers)


def peak_mib(task: Task, side: str, rows: str, tokens: str) -> float:
    """By how much three steps raise this process's memory above what it holds before them. On Linux, or on a GPU."""
    step = step_of(task, side, rows, int(tokens))
    gc.collect()
    if task.base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
    else:
        loaded = psutil.Process().memory_info().rss
        # What loading and tokenizing took is no part of it: Linux begins its count of the peak again.
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        step()
    if task.base.device.type == "cuda":
        return (torch.cuda.max_memory_allocated() - loaded) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return (peak - loaded) / 2**20
