"""Train a soft prompt on a folder of texts, without the command line.

    python examples/train_on_a_folder.py FOLDER voice.zip [STEPS]

Each event of the training loop is a value: this script prints the evaluations and the samples and leaves the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sordino import formats
from sordino.models import base_model
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.training.config import TrainConfig
from sordino.training.loop import Finished, Run, Sample, Validation, train
from sordino.training.run import TextPaths, finish, prepare


def read_prompt(name: str) -> SoftPrompt:
    """Only asked for where the settings say init="file:...": start from another soft prompt."""
    return formats.read(Path(name))


def main(folder: str, target: str, steps: str = "150") -> None:
    base = base_model.load("smollm2")
    # Reads the texts, splits them into three sets, and chooses the first matrix.
    prepared = prepare(base, TrainConfig(steps=int(steps)), TextPaths((Path(folder),)), read_prompt)
    print(prepared.splits.how)

    # Checkpoints and metrics.jsonl go here; train(..., resume=True) resumes from them.
    run_folder = Path(target).with_suffix(".run")
    run_folder.mkdir(exist_ok=True)
    run = Run("", prepared.data, prepared.config, run_folder, prepared.start.matrix_PD)
    for event in train(base, run):
        match event:
            case Validation(step, loss, best):
                print(f"step {step}: validation loss {loss:.3f}{' (best)' if best else ''}")
            case Sample(step, prompt, text):
                print(f"step {step}: {prompt}|{text}")
            case Finished():
                soft_prompt = finish(prepared, event, Metadata(name=Path(target).stem), [], {})
                for warning in formats.write(soft_prompt, Path(target)):
                    print(warning)
                print(f"written: {target}, {soft_prompt.n_tokens} virtual tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
