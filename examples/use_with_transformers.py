"""Put a soft prompt in front of a model that transformers has loaded, and let transformers write.

python examples/use_with_transformers.py HuggingFaceTB/SmolLM2-135M voice.zip "The stranger knocked at the door, and"
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import sordino


def main(model: str, file: str, *texts: str) -> None:
    network = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    # transformers does not hold a prompt's attention as the text grows, so that is turned off.
    prompt = sordino.load(file).with_metadata(attention=sordino.PromptAttention())
    attached = sordino.attach(network, tokenizer, prompt)

    # One batch. The soft prompt and BOS are already in what `attached` gives; any option of `generate` may follow.
    ids = network.generate(**attached(texts), max_new_tokens=60, do_sample=False)
    for text, continuation in zip(texts, attached.decode(ids), strict=True):
        print(f"{text}|{continuation}")


if __name__ == "__main__":
    main(*sys.argv[1:])
