"""A task with two labels: is a film review good or bad? What text in front achieves, and what 20 trained vectors do.

Corpus: reviews (train.jsonl, heldout.jsonl: {"prompt": "Review: ...\\nVerdict:", "completion": " good" | " bad"}). VALIDATION rows
are split off the training rows for every choice made: which instruction and which examples (2 and 4) make the best text, out of
TEXTS tried for each number; and the recipe of the soft prompts (`--validate` measures one). The
held-out rows are read once for the numbers below. Every accuracy is that of the likelier label, over all held-out rows.

    instructions         five, without examples; "best instruction" is the best on the held-out rows, which flatters it
    examples 2, 4        the text that was best on the validation rows
    soft prompt 0 to 4   by seed; "mean of seeds 0-2" against the best text with examples and the best instruction
    ensembles            of the five soft prompts, against their mean and the best of them

Intervals: paired bootstrap by row; of a mean over seeds, of each row's mean. Results so far are kept in --state, so that a
stopped run resumes where it was. About an hour and a half on two quiet cores.

    python -m benchmarks.reviews
    python -m benchmarks.reviews --validate --steps 80 --batch 16 --lr 0.25 --init labels    (a recipe, on validation rows only)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import arguments, save
from sordino import formats
from sordino.evaluation.answers import score_rows, together
from sordino.evaluation.classification import Answers, closed, majority
from sordino.evaluation.conditions import Condition, instruction, no_prompt, soft_prompt, with_examples
from sordino.evaluation.confidence import Floats, interval, resampled_means
from sordino.evaluation.config import TaskConfig
from sordino.evaluation.tasks import Labels, drawn_shots, labels_of
from sordino.models.base_model import BaseModel, load
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.texts.examples import make_examples
from sordino.texts.pieces import Piece, data_hash
from sordino.texts.reading import read_pieces
from sordino.training.checkpoint import FILE
from sordino.training.config import TrainConfig
from sordino.training.events import Finished
from sordino.training.form import form_of, placement_of
from sordino.training.initialise import initialise
from sordino.training.loop import Run, TrainSet, train

INSTRUCTIONS = (
    "Say whether each film review is good or bad.",
    "Decide whether the reviewer liked the film. The verdict is good or bad.",
    "Classify the sentiment of each movie review as good or bad.",
    "Film reviews and their verdicts, good or bad:",
    "You are a careful reader of film reviews. For every review, write the verdict: good if it praises the film, bad if not.",
)
SHOTS = (2, 4)
DRAWS = 4
TEXTS = len(INSTRUCTIONS) + DRAWS - 1
VALIDATION = 400
VALIDATION_ROWS = 200
SEEDS = 5
START = f"text:{INSTRUCTIONS[3]}"
RECIPE: dict[str, Any] = {"tokens": 20, "steps": 240, "batch": 32, "lr": 0.5, "init": START}
CONFIG = TaskConfig(row_tokens=160, pass_tokens=4096)


def main() -> None:
    parser = arguments(__doc__ or "", corpus="reviews")
    state = Path(__file__).parents[1] / "runs" / "reviews"
    parser.add_argument("--state", type=Path, default=state, help="where partial results are kept")
    parser.add_argument("--limit", type=int, default=0, help="held-out or validation rows (0: all of them)")
    parser.add_argument("--validate", action="store_true", help="measure one recipe on validation rows, and stop")
    parser.add_argument("--steps", type=int, default=RECIPE["steps"])
    parser.add_argument("--batch", type=int, default=RECIPE["batch"])
    parser.add_argument("--lr", type=float, default=RECIPE["lr"])
    parser.add_argument("--init", default=RECIPE["init"])
    options = parser.parse_args()
    if not options.corpus.exists():
        raise SystemExit(f"skipped: the corpus {options.corpus.name} is not there (--corpus)")
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    pieces = read_pieces([options.corpus / "train.jsonl"]).pieces
    order = np.random.default_rng(0).permutation(len(pieces))
    validation = [pieces[at] for at in order[:VALIDATION]]
    training = [pieces[at] for at in order[VALIDATION:]]
    labels = labels_of(base, pieces)
    recipe = {**RECIPE, "steps": options.steps, "batch": options.batch, "lr": options.lr, "init": options.init}
    options.state.mkdir(parents=True, exist_ok=True)
    if options.validate:
        validate(base, training, validation[: options.limit or VALIDATION], labels, recipe, options.state)
        return
    kept = options.state / "recipe.json"
    if kept.exists() and json.loads(kept.read_text()) != recipe:
        raise SystemExit(f"{options.state} holds another recipe's results: give another --state")
    kept.write_text(json.dumps(recipe))
    heldout = list(read_pieces([options.corpus / "heldout.jsonl"]).pieces)
    rows = heldout[: options.limit or len(heldout)]
    save("reviews", base.device, measured(base, training, validation, rows, labels, recipe, options.state))


def validate(
    base: BaseModel,
    training: Sequence[Piece],
    validation: Sequence[Piece],
    labels: Labels,
    recipe: dict[str, Any],
    state: Path,
) -> None:
    """One recipe's accuracy on validation rows."""
    began = time.monotonic()
    name = "-".join(str(value).replace("/", " ")[:40] for value in recipe.values())
    prompt = trained(base, training, recipe, 0, state / f"try {name}.zip")
    seconds = time.monotonic() - began
    logp_NCL = score_rows(base, [soft_prompt(base, "", prompt)], validation, labels, CONFIG)
    right_N = right_of(labels, validation)
    correct_N = logp_NCL[:, 0].argmax(axis=1) == right_N
    nll = -closed(logp_NCL[:, 0])[np.arange(len(right_N)), right_N].mean()
    result = {
        **recipe,
        "rows": len(right_N),
        "accuracy": round(float(correct_N.mean()), 4),
        "nll": round(float(nll), 4),
    }
    print(json.dumps({**result, "training_s": round(seconds, 1), "all_s": round(time.monotonic() - began, 1)}))


def measured(
    base: BaseModel,
    training: Sequence[Piece],
    validation: Sequence[Piece],
    heldout: Sequence[Piece],
    labels: Labels,
    recipe: dict[str, Any],
    state: Path,
) -> list[dict[str, Any]]:
    """The rows of the result. Everything that took long is in `state` as soon as it is known."""
    right_N = right_of(labels, heldout)

    def scored(name: str, make: Callable[[], Condition]) -> Answers:
        path = state / f"{name} {len(heldout)}.npy"
        condition = make()
        if not path.exists():
            began = time.monotonic()
            logp_NCL = score_rows(base, [condition], heldout, labels, CONFIG)
            np.save(path, logp_NCL[:, 0])
            accuracy = (logp_NCL[:, 0].argmax(axis=1) == right_N).mean()
            print(f"{name}: {accuracy:.4f} in {time.monotonic() - began:.0f} s", flush=True)
        logp_NL = np.load(path)
        raw_N = logp_NL[np.arange(len(right_N)), right_N]
        return Answers(condition.kind, condition.label, condition.tokens, closed(logp_NL), raw_N)

    prompts = []
    for seed in range(SEEDS):
        prompt = trained(base, training, recipe, seed, state / f"seed {seed}.zip")
        prompts.append(scored(f"seed {seed}", lambda p=prompt, s=seed: soft_prompt(base, f"soft prompt {s}", p)))
    nothing = scored("no prompt", lambda: no_prompt(base))
    instructions = [
        scored(f"instruction {at}", lambda t=text: instruction(base, t)) for at, text in enumerate(INSTRUCTIONS)
    ]
    shown = []
    for count in SHOTS:
        text, draw = chosen_text(base, training, validation[:VALIDATION_ROWS], labels, count, state)
        shots = drawn_shots(training, count, seed=draw)
        shown.append(scored(f"examples {count}", lambda t=text, s=shots: with_examples(base, t, s)))
    known = Answers("majority", "", 0, majority(right_of(labels, training), len(labels.texts), len(heldout)))
    return table(prompts, [nothing], instructions, shown, known, right_N)


def trained(base: BaseModel, training: Sequence[Piece], recipe: dict[str, Any], seed: int, path: Path) -> SoftPrompt:
    """The soft prompt of one seed, from its file where it was trained before."""
    if path.exists():
        return formats.read(path)
    began = time.monotonic()
    # Neither samples nor validation: the last average is taken, whatever it is.
    config = TrainConfig(**recipe, seed=seed, row_tokens=160, patience=0, sample_every=1_000_000, pass_tokens=2048)
    examples = make_examples(training, base, max_tokens=config.row_tokens).examples
    start = initialise(base, config, form_of(base, config), examples, ())
    run = path.with_suffix(".run")
    run.mkdir(exist_ok=True)
    data = TrainSet(examples, (), data_hash(training))
    resume = (run / FILE).exists()
    *_, finished = train(base, Run("", data, config, run, start.matrix_PD), resume=resume)
    assert isinstance(finished, Finished)
    metadata = Metadata(name=path.stem, base=base.ref, placement=placement_of(base, config), training=dict(recipe))
    prompt = SoftPrompt(finished.matrix_PD.detach().numpy(), metadata)
    formats.write(prompt, path)
    print(f"{path.stem}: trained in {time.monotonic() - began:.0f} s", flush=True)
    return prompt


def chosen_text(
    base: BaseModel, training: Sequence[Piece], validation: Sequence[Piece], labels: Labels, count: int, state: Path
) -> tuple[str, int]:
    """The instruction, and the draw of `count` examples, that are best on validation rows: every instruction with one draw, then
    the best of them with DRAWS - 1 others."""
    path = state / f"choice {count}.json"
    right_N = right_of(labels, validation)

    def accuracies(tried: Sequence[tuple[str, int]]) -> list[float]:
        conditions = [with_examples(base, text, drawn_shots(training, count, seed=draw)) for text, draw in tried]
        logp_NCL = score_rows(base, conditions, validation, labels, CONFIG)
        return [float(hits) for hits in (logp_NCL.argmax(axis=2) == right_N[:, None]).mean(axis=0)]

    if not path.exists():
        first = [(text, 0) for text in INSTRUCTIONS]
        found = list(zip(accuracies(first), first, strict=True))
        best = max(found)[1][0]
        others = [(best, draw) for draw in range(1, DRAWS)]
        found += zip(accuracies(others), others, strict=True)
        path.write_text(json.dumps(sorted(found, reverse=True), indent=1))
        print(f"examples {count}: {max(found)}", flush=True)
    _, (text, draw) = json.loads(path.read_text())[0]
    return text, draw


def table(
    prompts: Sequence[Answers],
    nothing: Sequence[Answers],
    instructions: Sequence[Answers],
    shown: Sequence[Answers],
    known: Answers,
    right_N: np.ndarray[Any, np.dtype[np.int64]],
) -> list[dict[str, Any]]:
    """Accuracies with 95 % intervals, and the soft prompts' gains, in points of 100."""

    def hits(line: Answers) -> Floats:
        return (line.logp_NL.argmax(axis=1) == right_N).astype(float)

    def spread(values_N: Floats) -> list[float]:
        means_R = resampled_means(values_N[:, None], np.ones(len(values_N)), resamples=10_000, seed=0)[:, 0]
        ends = interval(means_R, len(values_N))
        return [round(100 * float(value), 2) for value in (values_N.mean(), *ends)]

    def accuracy(values_N: Floats) -> dict[str, Any]:
        value, low, high = spread(values_N)
        return {"accuracy": value, "interval": f"{low} to {high}"}

    def best(lines: Sequence[Answers]) -> Answers:
        return max(lines, key=lambda line: hits(line).mean())

    three_N = np.mean([hits(line) for line in prompts[:3]], axis=0)
    five_N = np.mean([hits(line) for line in prompts], axis=0)
    rows: list[dict[str, Any]] = [
        {"rows": name(line), **accuracy(hits(line))} for line in (*prompts, *nothing, *instructions, *shown, known)
    ]
    for title, values_N in (
        ("mean of seeds 0-2", three_N),
        *((f"seed {n}", hits(v)) for n, v in enumerate(prompts[:3])),
    ):
        less_instruction, less_shown = values_N - hits(best(instructions)), values_N - hits(best(shown))
        rows.append(
            {
                "rows": title,
                **accuracy(values_N),
                "points_over_best_instruction": round(100 * float(less_instruction.mean()), 2),
                "over_best_instruction": spread(less_instruction),
                "over_best_examples": spread(less_shown),
            }
        )
    _, member, *ensembles = together(prompts, right_N)
    return rows + [
        {
            "rows": f"ensemble of five, {line.label}",
            **accuracy(hits(line)),
            "points_over_mean_member": round(100 * float((hits(line) - five_N).mean()), 2),
            "over_mean_member": spread(hits(line) - five_N),
            "over_best_member": spread(hits(line) - hits(member)),
        }
        for line in ensembles
    ]


def name(line: Answers) -> str:
    return line.kind if line.kind in ("majority", "no prompt") else line.label


def right_of(labels: Labels, pieces: Sequence[Piece]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([labels.index(piece) for piece in pieces], dtype=np.int64)


if __name__ == "__main__":
    main()
