"""A small T5 of our own for benchmarks.t5, since no package index has T5's weights.

A gated T5 of 8 million parameters, from nothing: its tokenizer and its span corruption on the packaged texts and the corpora of
../shared/data, then prefixes, as Lester et al. (2021) adapt theirs. Both states are kept in the user's cache.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration, T5Tokenizer
from transformers.optimization import Adafactor

from sordino.forward.packing import row_example
from sordino.models.base_model import BaseModel, from_parts, multiplies_bfloat16
from sordino.models.cache import cache_folder
from sordino.texts.examples import Example, make_examples
from sordino.texts.pieces import Piece
from sordino.texts.reading import read_pieces

WORDS, SENTINELS, ROW = 4000, 100, 128
SIZES: dict[str, Any] = {
    "d_model": 256, "d_kv": 64, "d_ff": 640, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "decoder_start_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
# The share of the time that goes to prefixes.
ADAPTED = 0.4
# The learning rate, times each weight's own size, rises over so many steps and falls to a tenth with the time.
RATE, WARMUP = 2e-2, 50
State = Literal["span-corruption", "prefix-lm"]


def model_folder(minutes: float, state: State) -> Path:
    """Where the model is, after span corruption alone or adapted to prefixes."""
    return cache_folder() / "benchmarks" / f"t5-{minutes:g}-minutes" / state


def train_model(data: Path, minutes: float) -> list[dict[str, Any]]:
    """Train it; a line for each objective."""
    texts = corpus(data)
    tokenizer = own_tokenizer([piece.words for piece in texts])
    torch.manual_seed(0)
    network = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **SIZES))
    base = from_parts(network, tokenizer, name="own", freeze=False)
    network.train()
    # T5's own: AdamW saturates the attention, which is not scaled, and ends at its loss after 200 steps (LOG.md).
    optimiser = Adafactor(network.parameters(), lr=RATE, scale_parameter=True, relative_step=False)
    print(f"training {network.num_parameters():,} parameters for {minutes:g} minutes", flush=True)
    lines = []
    states: tuple[tuple[State, float], ...] = (("span-corruption", 1 - ADAPTED), ("prefix-lm", ADAPTED))
    for state, share in states:
        examples = make_examples(texts, base, max_tokens=ROW, objective=state).examples
        losses = _train(base, network, optimiser, examples, 60 * minutes * share)
        network.save_pretrained(model_folder(minutes, state))
        tokenizer.save_pretrained(model_folder(minutes, state))
        first, last = (sum(some) / len(some) for some in (losses[:50], losses[-50:]))
        lines.append(
            {
                "objective": state,
                "parameters": network.num_parameters(),
                "examples": len(examples),
                "steps": len(losses),
                "loss of the first 50": round(first, 3),
                "loss of the last 50": round(last, 3),
            }
        )
        print(lines[-1], flush=True)
    return lines


def corpus(data: Path) -> list[Piece]:
    """The packaged texts, and those of ../shared/data that nothing is measured on."""
    packaged = Path(str(resources.files("sordino").joinpath("data")))
    paths = [path for root in (packaged, data) for path in sorted(root.rglob("*")) if path.suffix in (".txt", ".jsonl")]
    pieces = read_pieces([path for path in paths if "heldout" not in str(path)]).pieces
    return [Piece(one.name, "text", one.prompt + one.text) for one in pieces]


def _train(
    base: BaseModel, network: PreTrainedModel, optimiser: Any, examples: Sequence[Example], seconds: float
) -> list[float]:
    began, losses = time.monotonic(), []
    for some in batches(examples, 16):
        passed = (time.monotonic() - began) / seconds
        if passed > 1:
            return losses
        for group in optimiser.param_groups:
            group["lr"] = RATE * min((len(losses) + 1) / WARMUP, 1 - 0.9 * passed)
        # Twice the steps in the same time where the processor multiplies bfloat16; the weights stay float32.
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bfloat16()):
            loss = network(**padded(base, some)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    raise AssertionError("batches have no end")


def own_tokenizer(texts: Sequence[str]) -> T5Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=WORDS, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = [(word, score) for word, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=SENTINELS)


def batches(examples: Sequence[Example], count: int, seed: int = 0) -> Iterator[list[Example]]:
    """Without an end, in an order by the seed."""
    random = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=random).tolist()
        for at in range(0, max(1, len(order) - count + 1), count):
            yield [examples[i] for i in order[at : at + count]]


def padded(base: BaseModel, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A batch as transformers takes it."""
    rows = [row_example(base, example, base.bos_ids) for example in examples]
    cut = [(list(row.ids[: row.input]), list(row.ids[row.input :])) for row in rows if row.input is not None]
    read, written = (max(len(side[at]) for side in cut) for at in (0, 1))
    made = {
        "input_ids": [ids + [0] * (read - len(ids)) for ids, _ in cut],
        "attention_mask": [[1] * len(ids) + [0] * (read - len(ids)) for ids, _ in cut],
        "decoder_input_ids": [(ids + [0] * written)[: written - 1] for _, ids in cut],
        "labels": [(ids[1:] + [-100] * written)[: written - 1] for _, ids in cut],
    }
    return {name: torch.tensor(values, device=base.device) for name, values in made.items()}
