"""A run, or a group, in a process of its own, for a test to kill.

python -m tests.training.kill_me FOLDER METHOD|group LINES [resume]

Beyond so many lines of its metrics it goes no further, so that it does not end while the test that kills it has no core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from sordino.training import loop
from sordino.training.events import Finished
from tests.training.runs import CONFIG, several_runs, small_base, small_set, start_of


def main() -> None:
    from dataclasses import replace

    torch.set_num_threads(1)
    loop.CHECKPOINT_SECONDS = 0.0
    folder, method, lines = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    metrics = (folder / "d" if method == "group" else folder) / "metrics.jsonl"

    def pause() -> None:
        while metrics.exists() and metrics.read_bytes().count(b"\n") > lines:
            time.sleep(0.01)

    base = small_base()
    if method == "group":
        runs = several_runs(base, folder)
        for name, event in loop.train_group(base, loop.RunGroup(runs, folder), resume="resume" in sys.argv):
            pause()
            if isinstance(event, Finished):
                (folder / name / "matrix.bin").write_bytes(event.matrix_PD.numpy().tobytes())
        return
    config = replace(CONFIG, method=method, steps=60, patience=0)
    run = loop.Run("", small_set(base), config, folder, start_of(base))
    for event in loop.train(base, run, resume="resume" in sys.argv):
        pause()
        if isinstance(event, Finished):
            (folder / "matrix.bin").write_bytes(event.matrix_PD.numpy().tobytes())


if __name__ == "__main__":
    main()
