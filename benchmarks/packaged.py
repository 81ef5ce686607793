"""The soft prompts that come with Sordino, each trained on its packaged corpus, all with one recipe in two runs.

The first run learns the voice right in front of the text. The second starts from its result, at a lower rate, and learns to hold it
after other text. The files go to --folder. To take them over, copy those of the second run to src/sordino/data/prompts, then run
`make readme` and `python -m benchmarks.analysis`.

    python -m benchmarks.packaged                about twenty minutes on two cores
    python -m benchmarks.packaged --only keeper
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from sordino.formats import read

DATA = Path(str(resources.files("sordino"))) / "data"
CORPORA = {"keeper": "keeper", "port-dolor": "noir", "village-gazette": "gazette"}
# Where the first words of a validation text would make the base model write what the file's rating rules out: a held-out text's.
SAMPLES = {"port-dolor": "Five in the morning is the bottom of"}
# Found on the keeper's log: LOG.md, "The packaged prompts, held".
FIRST: Mapping[str, Any] = {"steps": 150, "context": 0, "hold": "off", "measure": "none"}
SECOND: Mapping[str, Any] = {"steps": 100, "lr": 0.1, "hold": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/packaged"))
    parser.add_argument("--only", nargs="*", default=list(CORPORA), choices=list(CORPORA))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        first, second = options.folder / f"{name}.first.zip", options.folder / f"{name}.zip"
        train(name, {"out": first, **FIRST})
        train(name, {"out": second, "init": f"file:{first}", **SECOND})


def train(name: str, options: Mapping[str, Any]) -> None:
    """What the packaged file says of itself stays as it is."""
    corpus, known = DATA / CORPORA[name], read(DATA / "prompts" / f"{name}.zip").metadata
    said = {
        "name": known.name,
        "description": known.description,
        "licence": known.licence,
        "tags": ", ".join(known.tags),
        "rating": known.rating,
        **({"sample-text": SAMPLES[name]} if name in SAMPLES else {}),
    }
    given = {"heldout": corpus / "heldout", **said, **options}
    flags = [part for option, value in given.items() for part in (f"--{option}", str(value))]
    command = ["-m", "sordino", "train", str(corpus / "train"), *flags, "--overwrite"]
    subprocess.run([sys.executable, *command], check=True)


if __name__ == "__main__":
    main()
