"""Continue a text without and with a soft prompt, in one batch, as it is written.

python examples/generate_with_a_prompt.py voice.zip "The stranger knocked at the door, and"
"""

from __future__ import annotations

import sys

import sordino


def main(file: str, text: str) -> None:
    prompt = sordino.load(file)
    model = sordino.load_model("smollm2")
    print(f"fit: {model.fit(prompt).reason}")

    # A row is a text and its soft prompt: any mixture of them is one batch.
    texts = ["", ""]
    for piece in model.stream(text, [None, prompt], seed=0, max_tokens=60):
        texts[piece.request] += piece.text
    print(f"without: {text}{texts[0]}")
    print(f"with:    {text}{texts[1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
