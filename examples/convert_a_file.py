"""Read a soft prompt of any known format, look at it, and write it in another one.

    python examples/convert_a_file.py voice.zip voice-peft peft

The format of the source is found by its content. This script loads no PyTorch.
"""

from __future__ import annotations

import sys

import sordino


def main(source: str, target: str, to: str) -> None:
    peek = sordino.peek(source)  # headers only: cheap for a folder of thousands
    print(f"{source} is {peek.format}: {peek.n_tokens} virtual tokens of width {peek.d_model}")

    prompt = sordino.load(source)
    print(f"name {prompt.metadata.name!r}, content hash {prompt.content_hash[:16]}")

    # The matrix is a plain numpy array; metadata are changed on a copy.
    print(f"largest number {abs(prompt.matrix).max():.3f}")
    prompt = prompt.with_metadata(tags=(*prompt.metadata.tags, "converted"))
    prompt.save(target, to=to)  # logs what the format cannot hold
    print(f"written: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
