"""The prebuilt llama.cpp against one built for this machine's processor (`make gguf`): steps of rows that write, and reading.

Same source, same file. Each library is in a process of its own, and the two take turns. Processor time of one thread, which other
programs hardly change.

    make gguf; python -m benchmarks.native --rounds 9
"""

from __future__ import annotations

import multiprocessing
import re
import statistics
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import arguments, paired_ratio, save
from sordino.engine.runners import llama_library
from sordino.engine.runners.llama_context import LlamaContext
from sordino.engine.runners.llama_room import CellBudget
from sordino.models import files

# What is after each row, and steps of one measurement.
BEHIND, STEPS = 8, 8
ROWS, READ = (1, 4, 16), 128
SIDES = {"prebuilt": "xllamacpp", "native": "sordino_llama"}


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    path = files.gguf_file(files.resolve(options.model))
    if path is None:
        raise SystemExit(f"{options.model} is no .gguf file")
    sides = {name: started(package, path) for name, package in SIDES.items()}
    rows: list[dict[str, Any]] = [{"rows": "built with", **{name: ask(side, 0) for name, side in sides.items()}}]
    for count in (*ROWS, -READ):
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for at in range(options.rounds + 1):
            for name, side in sides.items():
                taken = ask(side, count)
                # The first is to warm up.
                seconds[name] += [taken] * (at > 0)
        tokens = READ if count < 0 else count * STEPS
        title = f"reading {READ} tokens" if count < 0 else f"{count} row{'s' * (count > 1)}"
        row: dict[str, Any] = {"rows": title}
        for name, each in seconds.items():
            row[f"{name}, tokens/s"] = round(tokens / statistics.median(each), 1)
        row["native/prebuilt"] = round(paired_ratio(seconds["prebuilt"], seconds["native"]), 3)
        rows.append(row)
    for side in sides.values():
        side.send(None)
    save("native", torch.device("cpu"), rows)


def started(package: str, path: Path) -> Connection:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=measure, args=(there, package, path), daemon=True).start()
    return here


def ask(side: Connection, count: int) -> Any:
    side.send(count)
    return side.recv()


def measure(asked: Connection, package: str, path: Path) -> None:
    """Answer each number: rows of a step, tokens to read where it is negative, and for 0 with what was built in; None ends it."""
    llama_library.PLACES = tuple(place for place in llama_library.PLACES if place[0] == package)
    cells = max(ROWS) * 256
    context = LlamaContext(path, CellBudget(1 << 32, cells, max(ROWS), row_cells=READ), batch=256, threads=1)
    while (count := asked.recv()) is not None:
        if count == 0:
            said = llama_library.library().llama_print_system_info().decode()
            asked.send(", ".join(re.findall(r"(\w+) = 1", said)))
            continue
        for row in range(max(ROWS)):
            context.cut(row, 0)
        asked.send(reading(context, -count) if count < 0 else writing(context, list(range(count))))


def reading(context: LlamaContext, count: int) -> float:
    began = time.process_time()
    context.run_ids(ids(count), range(count), [0] * count, [False] * (count - 1) + [True])
    return time.process_time() - began


def writing(context: LlamaContext, rows: Sequence[int]) -> float:
    for row in rows:
        context.run_ids(ids(BEHIND), range(BEHIND), [row] * BEHIND, [False] * BEHIND)
    began = time.process_time()
    for at in range(STEPS):
        context.run_ids(ids(len(rows)), [BEHIND + at] * len(rows), rows, [True] * len(rows))
    return time.process_time() - began


def ids(count: int) -> list[int]:
    """Any tokens."""
    return [100 + at * 37 % 5000 for at in range(count)]


if __name__ == "__main__":
    main()
