"""What five minutes of training are worth on held-out text, against instructions, real excerpts and LoRA; what is not learned.

Part 1, a corpus of prose (carroll): `sordino train`'s own defaults for --minutes, the choice of the first matrix not counted. The
same held-out tokens are scored after the soft prompt, nothing, instructions, excerpts of 20 to 512 tokens, and in the model
with LoRA r = 8 (PEFT, all linear layers, AdamW), trained for as long on the same rows, at the better of two learning rates.

Part 2, facts: the keeper's log has its own names for things ("the stove is the Colonel"). Which of ten names does the model choose
for the stove: untrained, after a soft prompt trained on the log, and with LoRA trained on it for as long? Chance is one in ten.

    python -m benchmarks.quality --minutes 5
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import arguments, save
from sordino.evaluation.conditions import Baselines, Condition, no_prompt, soft_prompt
from sordino.evaluation.confidence import interval, resampled_means, units_of
from sordino.evaluation.config import EvaluateConfig
from sordino.evaluation.measuring import evaluate
from sordino.evaluation.scoring import nll_of_windows, windows_of
from sordino.forward.nll import nll_of_rows
from sordino.forward.packing import labelled_rows, one_by_one, with_leading_ids
from sordino.forward.token_losses import encode_contexts
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import Example
from sordino.texts.joined import join
from sordino.training.calibration import Calibration
from sordino.training.config import TextPaths, TrainConfig
from sordino.training.events import Finished
from sordino.training.execute import answered
from sordino.training.loop import train
from sordino.training.run import PreparedRun, estimate, finish, prepare
from sordino.training.schedule import batch_at
from sordino.training.strategy import SINGLE_PROCESS

KEEPER = Path(__file__).parents[1] / "src/sordino/data/keeper"
INSTRUCTIONS = (
    "A story for children by Lewis Carroll, full of nonsense and wordplay:",
    "Continue this Victorian children's story in the voice of its author, with dialogue, puns and logic turned upside down.",
    "From Alice's Adventures in Wonderland by Lewis Carroll:",
)
# What the keeper calls things: said in the log, and nowhere else.
FACTS = (
    ("In his log the keeper calls the goat the", " Bishop"),
    ("In his log the keeper calls the stove the", " Colonel"),
    ("In his log the keeper calls the horn the", " Cow"),
    ("In his log the keeper calls the lamp", " Herself"),
    ("The boat that brings the stores is called the", " Patient Ann"),
    ("The mate of the boat, in front with the rope, is", " Crake"),
    ("The town that the boat comes from is called", " Tolly"),
    ("In his log the keeper calls the sea the old", " tenant"),
    ("In his log the keeper calls his tea", " tar"),
    ("In his log the keeper calls a roof tile a Board", " biscuit"),
)
LORA_RATES = (3e-4, 1e-3)


def main() -> None:
    parser = arguments(__doc__ or "", corpus="carroll")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of every side")
    parser.add_argument("--limit", type=int, default=8192, help="held-out tokens that are scored")
    parser.add_argument("--only", choices=["prose", "facts"], help="one of the two parts  [default: both]")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    if options.only != "facts":
        if not options.corpus.exists():
            raise SystemExit(f"skipped: the corpus {options.corpus.name} is not there (--corpus)")
        save("quality", base.device, prose_rows(base, options))
    if options.only != "prose":
        save("facts", base.device, facts_rows(base, options.minutes))


def prose_rows(base: BaseModel, options: Any) -> list[dict[str, Any]]:
    config = EvaluateConfig(limit=options.limit)
    rows: list[dict[str, Any]] = []

    prepared = prepared_run(base, options.corpus / "train", options.corpus / "heldout", options.minutes)
    prompt, seconds = trained(prepared)
    report = evaluate(
        base,
        {"soft prompt": prompt},
        prepared.splits.heldout,
        config,
        baselines=Baselines(INSTRUCTIONS, prepared.splits.train),
    )
    for line in report.heldout.lines:
        less = line.differences.get("soft prompt")
        rows.append(
            {
                "corpus": options.corpus.name,
                "in_front": line.label if line.kind == "instruction" else f"{line.kind} {line.tokens}",
                "nll": round(line.nll.value, 4),
                "over_soft_prompt": less and [round(less.value, 4), *(round(end, 4) for end in less.interval or ())],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    rows.append(best_instruction(rows))
    return [*rows, lora_row(base, prepared, prompt, seconds, config, options.corpus.name)]


def facts_rows(base: BaseModel, minutes: float) -> list[dict[str, Any]]:
    prepared = prepared_run(base, KEEPER / "train", KEEPER / "heldout", minutes)
    prompt, seconds = trained(prepared)
    rows = [{"facts": "nothing", **facts(base, no_prompt(base))}]
    rows.append({"facts": "soft prompt", **facts(base, soft_prompt(base, "keeper", prompt))})
    with lora(base, prepared, LORA_RATES[-1], seconds) as steps:
        rows.append({"facts": f"LoRA, {steps} steps", **facts(base, no_prompt(base))})
    return rows


def best_instruction(rows: list[dict[str, Any]]) -> dict[str, Any]:
    best = min((row for row in rows if row["in_front"] in INSTRUCTIONS), key=lambda row: row["nll"])
    return {**best, "in_front": "best instruction"}


def prepared_run(base: BaseModel, folder: Path, heldout: Path, minutes: float) -> PreparedRun:
    prepared = prepare(base, TrainConfig(measure="none"), TextPaths((folder,), (heldout,)))
    cost = estimate([prepared], Calibration(minutes=minutes))
    return replace(prepared, config=replace(prepared.config, steps=cost.steps))


def trained(prepared: PreparedRun) -> tuple[SoftPrompt, float]:
    """The soft prompt, and the seconds that its training took, evaluations included."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        (prepared,) = answered([prepared], Path(folder), resume=False, strategy=SINGLE_PROCESS)
        for event in train(prepared.base, prepared.run(Path(folder))):
            if isinstance(event, Finished):
                seconds = time.monotonic() - began
                print(f"{event.progress.step} steps in {seconds:.0f} s, best validation {event.progress.best_loss:.4f}")
                return finish(prepared, event, Metadata(name="benchmark")), seconds
    raise AssertionError("training ended without saying so")


@contextmanager
def lora(base: BaseModel, prepared: PreparedRun, rate: float, seconds: float) -> Iterator[int]:
    """The base model with LoRA r = 8 trained for `seconds` on the run's rows; taken out again after it. Gives its steps."""
    from peft import LoraConfig, TaskType, get_peft_model

    torch.manual_seed(0)
    model: Any = get_peft_model(
        base.network, LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16, target_modules="all-linear")
    )
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for group in optimiser.param_groups:
            group["lr"] = rate * max(0.1, 1 - (time.monotonic() - began) / seconds)
        batch = [with_leading_ids(e, base.bos_ids) for e in batch_at(prepared.data.train, steps, prepared.config)]
        width = max(len(e.ids) for e in batch)
        ids, labels = torch.zeros(len(batch), width, dtype=torch.long), torch.full((len(batch), width), -100)
        mask = torch.zeros_like(ids)
        for row, e in enumerate(batch):
            n = len(e.ids)
            ids[row, :n], mask[row, :n] = torch.tensor(e.ids), 1
            labels[row, :n] = torch.where(torch.tensor(e.labelled), torch.tensor(e.ids), -100)
        place = base.device
        loss = model(input_ids=ids.to(place), attention_mask=mask.to(place), labels=labels.to(place)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        steps += 1
    try:
        yield steps
    finally:
        model.unload()
        base.network.requires_grad_(False)


def lora_row(
    base: BaseModel, prepared: PreparedRun, prompt: SoftPrompt, seconds: float, config: EvaluateConfig, corpus: str
) -> dict[str, Any]:
    """LoRA's loss on the windows that `evaluate` scored, less the soft prompt's: paired."""
    windows = windows_of(base, prepared.splits.heldout, row_tokens=config.row_tokens, limit=config.limit, first=False)
    tokens = np.array([sum(window.labelled) for window in windows], dtype=float)

    def losses(condition: Condition) -> Any:
        return nll_of_windows(base, [condition], windows, pass_tokens=1024)[:, 0]

    own = losses(soft_prompt(base, "soft prompt", prompt))
    best: tuple[float, float, int, Any] = (math.inf, 0.0, 0, None)
    for rate in LORA_RATES:
        with lora(base, prepared, rate, seconds) as steps:
            nll_W = losses(no_prompt(base))
        best = min(best, (float(nll_W.sum() / tokens.sum()), rate, steps, nll_W), key=lambda found: found[0])
        print(json.dumps({"lora": rate, "steps": steps, "nll": float(nll_W.sum() / tokens.sum())}), flush=True)
    loss, rate, steps, nll_W = best
    units = units_of([window.piece for window in windows], tokens.astype(int).tolist())
    sums_UC = units.sums(np.stack([own, nll_W], axis=1))
    drawn = resampled_means(sums_UC, units.sums(tokens), resamples=10_000, seed=0)
    ends = interval(drawn[:, 1] - drawn[:, 0], units.count)
    value = loss - float(own.sum() / tokens.sum())
    return {
        "corpus": corpus,
        "in_front": f"nothing; LoRA r=8, {steps} steps, lr {rate:g}, {sum_of_parameters(base)} parameters",
        "nll": round(loss, 4),
        "over_soft_prompt": [round(value, 4), *(round(end, 4) for end in ends)],
    }


def sum_of_parameters(base: BaseModel) -> int:
    """Parameters of LoRA r = 8 on every linear layer but the output head."""
    head = base.network.get_output_embeddings()
    linears = [m for m in base.network.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return sum(8 * (m.in_features + m.out_features) for m in linears)


@torch.inference_mode()
def facts(base: BaseModel, condition: Condition) -> dict[str, Any]:
    """How many of FACTS the model gets right: the answer of the highest mean log-probability among all answers; and the mean
    reciprocal rank."""
    answers = [answer for _, answer in FACTS]
    prefixes = encode_contexts(base, [condition])
    ranks = []
    for question, right in FACTS:
        joined = [join(base, (question, answer)) for answer in answers]
        examples = [with_leading_ids(Example(one.ids, one.touches({1}), ""), condition.leading) for one in joined]
        packed = labelled_rows(examples, one_by_one([len(e.ids) for e in examples]), [0] * len(examples))
        nll_N = nll_of_rows(base.network, prefixes, packed.rows, packed.labelled_BT).cpu()
        means = [float(nll_N[packed.example_N == at].mean()) for at in range(len(answers))]
        ranks.append(1 + sum(mean < means[answers.index(right)] for mean in means))
    return {
        "right": ranks.count(1),
        "of": len(FACTS),
        "mean_reciprocal_rank": round(sum(1 / rank for rank in ranks) / len(ranks), 3),
    }


if __name__ == "__main__":
    main()
