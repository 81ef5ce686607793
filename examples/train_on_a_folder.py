"""Train a soft prompt on a folder of texts, without the command line.

    python examples/train_on_a_folder.py FOLDER voice.zip [STEPS]

Each event of a run is a value: this script prints the evaluations and the samples and leaves the rest.
"""

from __future__ import annotations

import sys
from typing import Any

import sordino


def show(event: Any) -> None:
    match event:
        case sordino.Validation(step, loss, best):
            print(f"step {step}: validation loss {loss:.3f}{' (best)' if best else ''}")
        case sordino.Sample(step, prompt, text):
            print(f"step {step}: {prompt}|{text}")


def main(folder: str, target: str, steps: str = "150") -> None:
    model = sordino.load_model("smollm2")
    # Checkpoints go to a folder beside the file: sordino.resume(model, "voice.run") goes on from there.
    result = sordino.train(model, folder, out=target, steps=int(steps), on_event=show)
    print(result.report)
    print(f"written: {result.file}, {result.prompt.n_tokens} virtual tokens; more in {result.folder / 'report.html'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
