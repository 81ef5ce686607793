"""One training step against PEFT prompt tuning on the same rows, and against the forward pass of the same rows.

PEFT's side is its documented use: get_peft_model, labels -100 on padding, attention_mask, loss.backward(). The same network
object serves both sides, so weights, dtype and threads are the same. Nothing is timed unless both give the same loss. On models
with a BOS, both sides put it after the prompt, since PEFT cannot put the prompt after the BOS.

    python -m benchmarks.training_step --rounds 5
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import alternate, arguments, medians, paired_ratio, save
from sordino.forward.packing import with_leading_ids
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel, load
from sordino.texts.examples import Example
from sordino.texts.joined import join
from sordino.training.config import TrainConfig
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls

# What `sordino train` uses: a step of more positions is accumulated over several passes, the prompt run once for all.
PASS_TOKENS = TrainConfig().pass_tokens


def main() -> None:
    parser = arguments(__doc__ or "", corpus="bierce")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    text = Path(__file__).parents[1] / "src/sordino/data/keeper"
    ids = [i for file in sorted(text.rglob("[0-9]*.txt")) for i in base.encode(file.read_text())]
    rows = []
    for count, length, tokens in [(8, 128, 20), (8, 128, 100), (16, 32, 100), (4, 256, 20)]:
        examples = [whole(ids[i * length : (i + 1) * length]) for i in range(count)]
        rows.append(measure(base, f"{count} x {length}, {tokens} virtual", examples, tokens, options))
        # After every row, so that an interrupted run keeps its results.
        save("training_step", base.device, rows)
    if options.corpus.exists():
        rows.append(measure(base, "bierce, 16 ragged, 20 virtual", ragged(base, options.corpus, 16), 20, options))
    else:
        print(f"skipped: the ragged rows, because {options.corpus.name} is not there (--corpus)")
    save("training_step", base.device, rows)


def measure(base: BaseModel, name: str, examples: Sequence[Example], tokens: int, options: Any) -> dict[str, Any]:
    """One row of the table: a step here, a step of PEFT, a forward pass here."""
    start = base.embed(torch.tensor(base.encode("The keeper wrote in the log. " * tokens)[:tokens], device=base.device))
    matrix = start.detach().float().cpu().requires_grad_()
    peft_step, peft_gradient, unwrap = peft_side(base, examples, tokens, matrix)

    def step() -> float:
        matrix.grad = None
        return losses_and_gradients(base, [Batch(PrefixSource(matrix, "start"), examples)], PASS_TOKENS)[0]

    def forward() -> float:
        return mean_nlls(base, [Batch(PrefixSource(matrix, "start"), examples)], PASS_TOKENS)[0]

    ours, theirs = step(), peft_step()
    if abs(ours - theirs) > (1e-3 if base.dtype == torch.float32 else 2e-2):
        raise SystemExit(
            f"{name}: the losses differ, {ours} here and {theirs} in PEFT: they do not score the same tokens"
        )
    difference = (
        float((matrix.grad - peft_gradient()).norm() / peft_gradient().norm()) if matrix.grad is not None else 0.0
    )
    seconds = alternate({"sordino": step, "peft": peft_step, "forward": forward}, options.rounds, base.device)
    unwrap()
    middle = medians(seconds)
    return {
        "rows": name,
        "sordino_s": round(middle["sordino"], 4),
        "peft_s": round(middle["peft"], 4),
        "forward_s": round(middle["forward"], 4),
        "peft/sordino": round(paired_ratio(seconds["peft"], seconds["sordino"]), 3),
        "step/forward": round(paired_ratio(seconds["sordino"], seconds["forward"]), 3),
        "loss_sordino": round(ours, 5),
        "loss_peft": round(theirs, 5),
        "gradient_difference": f"{difference:.1e}",
    }


def peft_side(base: BaseModel, examples: Sequence[Example], tokens: int, matrix: torch.Tensor) -> Any:
    """PEFT's step on the same rows, padded on the right as a batch. Same matrix, same labels, mean over labelled tokens."""
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model = get_peft_model(base.network, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens))
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(matrix.detach())
    examples = [with_leading_ids(example, base.bos_ids) for example in examples]
    width = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n] = torch.tensor(example.ids)
        mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.tensor(example.labelled), torch.tensor(example.ids), -100)
    ids, mask, labels = ids.to(base.device), mask.to(base.device), labels.to(base.device)

    def step() -> float:
        weight.grad = None
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        return float(loss.detach())

    def unwrap() -> None:
        # Prompt learning wraps the network and changes nothing in it but requires_grad.
        base.network.requires_grad_(False)

    return step, lambda: weight.grad.detach().float().cpu(), unwrap


def whole(ids: Sequence[int]) -> Example:
    return Example(tuple(ids), (True,) * len(ids), "")


def ragged(base: BaseModel, corpus: Path, count: int) -> list[Example]:
    """Prompt and completion pairs of very different lengths; loss on the completion."""
    records = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
    chosen = random.Random(0).sample(records, count)
    examples = []
    for record in chosen:
        joined = join(base, (record["prompt"], record["completion"]))
        examples.append(Example(joined.ids, joined.touches({1}), ""))
    return examples


if __name__ == "__main__":
    main()
