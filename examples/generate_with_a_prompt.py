"""Continue a text without and with a soft prompt, in one batch, as it is written.

python examples/generate_with_a_prompt.py voice.zip "The stranger knocked at the door, and"
"""

from __future__ import annotations

import sys
from pathlib import Path

from sordino import formats
from sordino.engine.generate import TextRequest, generate
from sordino.engine.sampling import Sampling
from sordino.models import base_model


def main(file: str, text: str) -> None:
    prompt = formats.read(Path(file))
    base = base_model.load("smollm2")
    # Raises DoesNotFit for a soft prompt of another model; the answer says how sure that is.
    print(f"fit: {base.check_fit(prompt, force=False).reason}")

    # A row is a text and its soft prompt: any mixture of them is one batch.
    requests = [TextRequest(text, None, seed=0), TextRequest(text, prompt, seed=0)]
    texts = ["", ""]
    for piece in generate(base, requests, Sampling(max_tokens=60)):
        texts[piece.request] += piece.text
    print(f"without: {text}{texts[0]}")
    print(f"with:    {text}{texts[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
