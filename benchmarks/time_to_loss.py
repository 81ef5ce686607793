"""Wall time to PEFT's best held-out loss: PEFT at the best of four learning rates, text initialisation, 150 steps.

Both sides see the same kind of rows (4 x 128 tokens of the training text), have 20 virtual tokens and the same network, and
are measured on the same held-out windows, whose cost is not counted. PEFT's side is its documented loop: AdamW, linear decay
with warm-up, text initialisation. Sordino's side is `sordino train`'s own defaults, the choice of the first matrix counted;
only the number of steps is chosen, as users do, since the learning rate falls over the whole run. A loss curve depends on
the steps, not on the machine's load, so each side's time is its number of steps times its median step; the steps of both sides are
timed in alternation.

    python -m benchmarks.time_to_loss
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import alternate, arguments, medians, save
from benchmarks.training_step import PASS_TOKENS, peft_side, whole
from sordino.forward.sources import PrefixSource
from sordino.models.base_model import BaseModel, load
from sordino.texts.examples import Example
from sordino.training.config import TrainConfig
from sordino.training.form import form_of
from sordino.training.gradient import Batch, losses_and_gradients, mean_nlls
from sordino.training.initialise import initialise
from sordino.training.loop import Run, TrainSet, Validation, train
from sordino.training.schedule import batch_at

STEPS, ROWS, LENGTH, TOKENS = 150, 4, 128, 20
OWN_STEPS = 130
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
EVERY = 10


def main() -> None:
    parser = arguments(__doc__ or "", corpus="carroll")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--own-steps", type=int, default=OWN_STEPS, help="length of Sordino's run")
    parser.add_argument(
        "--curves", type=Path, help="a file that keeps PEFT's curves, so that a run cut short can go on"
    )
    options = parser.parse_args()
    if not options.corpus.exists():
        raise SystemExit(f"skipped: the corpus {options.corpus.name} is not there (--corpus)")
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    training = windows(base, options.corpus / "train")
    heldout = windows(base, options.corpus / "heldout")
    heldout = heldout[:: max(1, len(heldout) // 32)][:32]

    curves = json.loads(options.curves.read_text()) if options.curves and options.curves.exists() else {}
    for rate in RATES:
        if str(rate) not in curves:
            curves[str(rate)] = peft_curve(base, training, heldout, rate, options.steps)
            if options.curves:
                options.curves.write_text(json.dumps(curves))
    best_rate = min(curves, key=lambda rate: min(loss for _, loss in curves[rate]))
    target_step, target = min(curves[best_rate], key=lambda point: point[1])
    ours, start_seconds = sordino_curve(base, training, heldout, options.own_steps)
    reached = next((step for step, loss in ours if loss <= target), None)

    examples = training[:ROWS]
    matrix = torch.randn(TOKENS, base.d_model).mul_(base.embedding_rms).requires_grad_()
    peft_step, _, unwrap = peft_side(base, examples, TOKENS, matrix)
    seconds = medians(
        alternate(
            {
                "sordino": lambda: losses_and_gradients(
                    base, [Batch(PrefixSource(matrix, base.placement), examples)], PASS_TOKENS
                )[0],
                "peft": peft_step,
            },
            options.rounds,
            base.device,
        )
    )
    unwrap()
    peft_time = target_step * seconds["peft"]
    our_time = None if reached is None else start_seconds + reached * seconds["sordino"]
    row: dict[str, Any] = {
        "peft_best_rate": best_rate,
        # The best rate is at the edge of those tried: a better one may lie beyond.
        "peft_rates": ", ".join(map(str, RATES)),
        "peft_best_loss": round(target, 4),
        "peft_step": target_step,
        "peft_step_s": round(seconds["peft"], 3),
        "sordino_step": reached,
        "sordino_step_s": round(seconds["sordino"], 3),
        "sordino_start_s": round(start_seconds, 1),
        "sordino/peft": None if our_time is None else round(our_time / peft_time, 3),
        "sordino_best_loss": round(min(loss for _, loss in ours), 4),
        "peft_curves": curves,
        "sordino_curve": ours,
    }
    save("time_to_loss", base.device, [row])


def windows(base: BaseModel, folder: Path) -> list[Example]:
    ids = [i for file in sorted(folder.rglob("*.txt")) for i in base.encode(file.read_text(encoding="utf-8"))]
    return [whole(ids[at : at + LENGTH]) for at in range(0, len(ids) - LENGTH, LENGTH)]


def peft_curve(
    base: BaseModel, training: list[Example], heldout: list[Example], rate: float, steps: int
) -> list[tuple[int, float]]:
    """Held-out loss after every EVERY steps of PEFT's documented loop at one learning rate."""
    from peft import PromptTuningConfig, TaskType, get_peft_model
    from transformers import get_linear_schedule_with_warmup

    start = base.embed(torch.tensor(training[0].ids[:TOKENS], device=base.device)).detach().float()
    model: Any = get_peft_model(
        base.network, PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=TOKENS)
    )
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data.copy_(start)
    optimiser = torch.optim.AdamW([weight], lr=rate)
    schedule = get_linear_schedule_with_warmup(optimiser, steps // 20, steps)
    config = TrainConfig(batch=ROWS, steps=steps)
    curve = []
    for step in range(steps):
        ids = torch.tensor([e.ids for e in batch_at(training, step, config)], device=base.device)
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % EVERY == 0:
            curve.append(
                (
                    step + 1,
                    round(mean_nlls(base, [Batch(PrefixSource(weight.detach(), "start"), heldout)], PASS_TOKENS)[0], 5),
                )
            )
            print(json.dumps({"peft": rate, "step": step + 1, "heldout": curve[-1][1]}), flush=True)
    base.network.requires_grad_(False)
    return curve


def sordino_curve(
    base: BaseModel, training: list[Example], heldout: list[Example], steps: int
) -> tuple[list[tuple[int, float]], float]:
    """The same of `sordino train` with its defaults: the weight average's loss, and the seconds that the start took.

    The held-out windows stand where the validation set would, to be read after every EVERY steps; nothing is chosen by them
    (no early stopping), and the first matrix is chosen on training windows that are then left out.
    """
    config = TrainConfig(
        batch=ROWS, steps=steps, evaluate_every=EVERY, sample_every=steps + 1, patience=0, validation_tokens=10**9
    )
    began = time.monotonic()
    start = initialise(base, config, form_of(base, config), training[8:], training[:8])
    seconds = time.monotonic() - began
    curve = []
    with tempfile.TemporaryDirectory() as folder:
        data = TrainSet(training[8:], heldout, "benchmark")
        for event in train(base, Run("", data, config, Path(folder), start.matrix_PD)):
            if isinstance(event, Validation):
                curve.append((event.step, round(event.loss, 5)))
                print(json.dumps({"sordino": config.lr, "step": event.step, "heldout": curve[-1][1]}), flush=True)
    return curve, seconds


if __name__ == "__main__":
    main()
