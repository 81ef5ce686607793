"""The engine's tokens a second against transformers' generate and PEFT, and against itself without soft prompts.

Greedy, 64 new tokens a stream, the same 24-token openings on all sides, prefill included. Every round has its own openings,
so that no text is cached. One engine runs all rounds, as in a server, and has cached its soft prompts
in the warm-up; the row "first met" has a new engine every time, which runs its 16 x 20 vectors first. transformers' side is one
`generate` on the ideal batch: all rows of one length, all there at once, no soft prompt. PEFT's side is what PEFT can do with
16 soft prompts: one adapter after another. All sides share one network, its dtype and its threads.

    python -m benchmarks.engine --rounds 5
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import alternate, arguments, paired_ratio, save
from sordino.engine.config import Limits
from sordino.engine.engine import Engine
from sordino.engine.requests import Request
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Sampling
from sordino.forward.placement import leading_ids
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import Metadata, SoftPrompt

STREAMS, READ, NEW, TOKENS = 16, 24, 64, 20


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    prompts = [prompt(base, seed) for seed in range(STREAMS)]
    texts = openings(base, STREAMS, 0)
    rows = []
    seconds = alternate(
        {
            "16 prompts": Side(base, prompts),
            "one prompt": Side(base, prompts[:1] * STREAMS),
            "no prompt": Side(base, [None] * STREAMS),
            "generate": Generate(base, STREAMS),
        },
        options.rounds,
        base.device,
    )
    row: dict[str, Any] = {"rows": f"{STREAMS} streams"}
    for name, taken in seconds.items():
        row[f"{name}, tokens/s"] = round(STREAMS * NEW / statistics.median(taken), 1)
    ours = seconds["16 prompts"]
    row["16/one"] = round(paired_ratio(seconds["one prompt"], ours), 3)
    row["16/none"] = round(paired_ratio(seconds["no prompt"], ours), 3)
    row["16/generate"] = round(paired_ratio(seconds["generate"], ours), 3)
    rows.append(row)
    save("engine", base.device, rows)

    cold = alternate(
        {
            "16 prompts": Side(base, prompts, first_met=True),
            "one prompt": Side(base, prompts[:1] * STREAMS, first_met=True),
            "no prompt": Side(base, [None] * STREAMS, first_met=True),
        },
        options.rounds,
        base.device,
    )
    row = {"rows": f"{STREAMS} streams, first met"}
    for name, taken in cold.items():
        row[f"{name}, tokens/s"] = round(STREAMS * NEW / statistics.median(taken), 1)
    row["16/one"] = round(paired_ratio(cold["one prompt"], cold["16 prompts"]), 3)
    row["16/none"] = round(paired_ratio(cold["no prompt"], cold["16 prompts"]), 3)
    rows.append(row)
    save("engine", base.device, rows)

    single = alternate(
        {"with a prompt": Side(base, prompts[:1]), "generate": Generate(base, 1)}, options.rounds, base.device
    )
    row = {"rows": "1 stream"}
    for name, taken in single.items():
        row[f"{name}, tokens/s"] = round(NEW / statistics.median(taken), 1)
    row["1/generate"] = round(paired_ratio(single["generate"], single["with a prompt"]), 3)
    rows.append(row)
    save("engine", base.device, rows)

    first = alternate_first_tokens(base, texts[0], options.rounds)
    rows.append(first)
    save("engine", base.device, rows)

    with tempfile.TemporaryDirectory() as folder:
        model = peft_model(base, prompts, Path(folder))
        pair = alternate(
            {
                "16 prompts": Side(base, prompts),
                "peft": lambda: by_peft(base, model, texts, len(prompts)),
            },
            max(1, options.rounds // 2),
            base.device,
        )
    rows.append(
        {
            "rows": "16 streams, PEFT one adapter after another",
            "16/peft": round(paired_ratio(pair["peft"], pair["16 prompts"]), 3),
        }
    )
    save("engine", base.device, rows)


class Side:
    """16 streams, or as many as there are prompts, to their ends: on one engine, or on a new one each time it is called.

    biases: of every request, for what is compared with requests that need them. read: tokens of each opening.
    """

    def __init__(
        self,
        base: BaseModel,
        prompts: Sequence[SoftPrompt | None],
        *,
        first_met: bool = False,
        biases: tuple[tuple[int, float], ...] = (),
        read: int = READ,
    ) -> None:
        self.base, self.prompts, self.biases, self.read = base, prompts, biases, read
        self.engine = None if first_met else engine_of(base)
        self.called = 0

    def __call__(self) -> None:
        texts = openings(self.base, len(self.prompts), self.called, self.read)
        self.called += 1
        write(self.engine or engine_of(self.base), self.base, texts, self.prompts, self.biases)


class Generate:
    """transformers on the same openings."""

    def __init__(self, base: BaseModel, streams: int) -> None:
        self.base, self.streams, self.called = base, streams, 0

    def __call__(self) -> None:
        texts = openings(self.base, self.streams, self.called)
        self.called += 1
        by_transformers(self.base, texts)


@functools.cache
def _corpus(base: BaseModel) -> list[int]:
    folder = Path(__file__).parents[1] / "src/sordino/data"
    return [i for file in sorted(folder.rglob("[0-9]*.txt")) for i in base.encode(file.read_text())]


def openings(base: BaseModel, count: int, turn: int, read: int = READ) -> list[tuple[int, ...]]:
    """Pieces of the packaged texts, other ones each turn."""
    ids = _corpus(base)
    places = [((turn * count + at) * 97) % (len(ids) - read) for at in range(count)]
    return [tuple(ids[place : place + read]) for place in places]


def prompt(base: BaseModel, seed: int, tokens: int = TOKENS) -> SoftPrompt:
    """Tokens of the vocabulary: as good as a trained one for the clock."""
    ids = torch.randint(base.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed))
    matrix = base.embed(ids.to(base.device)).detach().float().cpu().numpy()
    return SoftPrompt(matrix, Metadata(placement=base.placement))


def engine_of(base: BaseModel) -> Engine:
    runner = TorchRunner(endless(base), kv_bytes=1 << 31, prefix_bytes=1 << 28)
    return Engine(runner, Limits(rows=STREAMS))


def endless(base: BaseModel) -> BaseModel:
    """No id ends a text here, as on transformers' side."""
    return replace(base, stop_ids=frozenset())


def write(
    engine: Engine,
    base: BaseModel,
    texts: Sequence[tuple[int, ...]],
    prompts: Sequence[SoftPrompt | None],
    biases: tuple[tuple[int, float], ...] = (),
) -> None:
    """All streams to their ends. biases: of every request."""
    for ids, soft in zip(texts, prompts, strict=True):
        leading = leading_ids(base, soft.metadata.placement if soft else None)
        engine.submit(Request((*leading, *ids), soft, Sampling(max_tokens=NEW, temperature=0, logit_bias=biases)))
    tokens = 0
    while engine.busy:
        tokens += sum(len(event.drawn) for _, event in engine.step() if hasattr(event, "drawn"))
    if tokens != NEW * len(texts):
        raise SystemExit(f"{tokens} tokens came, {NEW * len(texts)} were asked for")


def by_transformers(base: BaseModel, texts: Sequence[tuple[int, ...]]) -> None:
    ids = torch.tensor([[*base.bos_ids, *text] for text in texts], device=base.device)
    network: Any = base.network
    new = network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    assert new.shape[1] == ids.shape[1] + NEW


def alternate_first_tokens(base: BaseModel, ids: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Seconds to the first token after a prompt of 100, on an engine that has not met it, and on one that has."""
    soft = prompt(base, 99, 100)
    warm = engine_of(base)
    # Made before the clock starts: one for the warm-up and one a round.
    fresh = iter([engine_of(base) for _ in range(rounds + 1)])

    def first_token(engine: Engine) -> None:
        number = engine.submit(Request(ids, soft, Sampling(max_tokens=2, temperature=0)))
        engine.step()
        engine.abort(number)
        engine.step()

    first_token(warm)
    seconds = alternate(
        {"first request": lambda: first_token(next(fresh)), "second request": lambda: first_token(warm)},
        rounds,
        base.device,
    )
    return {
        "rows": "first token, 100 virtual",
        "second/first": round(paired_ratio(seconds["second request"], seconds["first request"]), 3),
    }


def peft_model(base: BaseModel, prompts: Sequence[SoftPrompt], folder: Path) -> Any:
    """The network with every prompt as an adapter of PEFT's, read from the folders that `convert` writes."""
    from peft import PeftModel

    from sordino import formats

    model: Any = None
    for number, soft in enumerate(prompts):
        place = folder / str(number)
        formats.write(soft, place, to="peft", force=True)
        if model is None:
            model = PeftModel.from_pretrained(base.network, str(place), adapter_name=str(number))
        else:
            model.load_adapter(str(place), adapter_name=str(number))
    return model


def by_peft(base: BaseModel, model: Any, texts: Sequence[tuple[int, ...]], count: int) -> None:
    for number in range(count):
        model.set_adapter(str(number))
        ids = torch.tensor([[*base.bos_ids, *texts[number]]], device=base.device)
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )


if __name__ == "__main__":
    main()
