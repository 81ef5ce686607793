"""What keeps a voice for 2,048 tokens: a system prompt, examples, LoRA, a control vector, or a soft prompt, held and not?

For each of the three packaged voices, SmolLM2 writes stories in each of these ways, from the same openings and seeds:

    nothing          the base model
    system prompt    the voice in a sentence, in the chat template, and the request for a long story
    five examples    five excerpts of the voice's texts in front
    LoRA r8          PEFT, all linear layers; merged into the weights to be run
    control vector   see `benchmarks.steering`; the strongest that costs training texts of the voice at most 0.1 nats
    embedding, KV    soft prompts of 20 virtual tokens, with the hold of their files and not held

LoRA and both soft prompts are trained for the same steps on the same rows, half of them after other text. Every 256 tokens of the
stories two judges: a classifier on character n-grams (`benchmarks.authorship`), and the model's loss on held-out texts of the voice
after 0, 256, 768 and 1,536 tokens of the stories. Then forty instructions that can be checked (`benchmarks.instructions`), the
loss on a text in another voice less the base model's (damage), positions in front, seconds to make, bytes, and how many different
ones a batch may hold.

Each stage is stored under --folder, and a run that was stopped goes on from there. Results are written as soon as a writer has
them. `python -m benchmarks.why` puts them into docs/why.md. Needs `pip install 'sordino[bench]'`.

    python -m benchmarks.holding --threads 2        the three voices
    python -m benchmarks.holding --quick            small numbers, to see that it runs: nothing is written to results/
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.authorship import Judge, styles, train_judge
from benchmarks.instructions import read_instructions
from benchmarks.measuring import arguments, save
from benchmarks.quality import trained
from benchmarks.stages import Cost, Stages
from benchmarks.steering import Directions, control_vector, train_lora, with_control, with_lora
from benchmarks.writers import Writer, answers, mean_nll, nll_behind_stories, write_stories
from sordino.evaluation.conditions import consecutive_ids
from sordino.evaluation.off_domain import packaged_text
from sordino.evaluation.scoring import windows_of
from sordino.formats import read_single
from sordino.models.base_model import BaseModel, load
from sordino.prompts.mixture import with_attention
from sordino.texts.examples import Example
from sordino.texts.neutral import BREAK, packaged_openings, training_texts
from sordino.texts.pieces import Piece
from sordino.texts.reading import read_pieces
from sordino.training.config import Kind, TextPaths, TrainConfig
from sordino.training.run import PreparedRun, prepare

DATA = Path(str(resources.files("sordino"))) / "data"
DESCRIPTIONS = {
    "keeper": "You are a lighthouse keeper who writes his log in dry, short sentences: wind and glass first, a grudge against the "
    "Board, names for everything.",
    "gazette": "You are the editor of a small town's weekly newspaper and write of small events in a pompous, solemn editorial we.",
    "noir": "You are an insurance investigator in a rainy city and write in the first person and the present tense, in short, dry, "
    "hard-boiled sentences.",
}
NOTHING = "nothing"
DISTANCES = (0, 256, 768, 1536)
# The stories are judged every so many tokens.
WINDOW = 256
STRENGTHS, MOST_LOST = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), 0.1
PAIR_TOKENS, ROW_TOKENS = 64, 128
EXAMPLES, EXAMPLE_TOKENS = 5, 64


@dataclass(frozen=True)
class Plan:
    """How much is done. others: texts of the base model that the judge learns from, as long as a story. pairs: for the control
    vector. windows: of held-out text. off_domain: tokens of a text in another voice.
    """

    steps: int = 50
    rows: int = 2
    stories: int = 1
    length: int = 2048
    others: int = 3
    pairs: int = 32
    windows: int = 4
    off_domain: int = 512
    instructions: int = 40

    @property
    def openings(self) -> tuple[str, ...]:
        return packaged_openings("texts")[: self.stories]

    @property
    def distances(self) -> tuple[int, ...]:
        return tuple(distance for distance in DISTANCES if distance <= self.length)


QUICK = Plan(3, 1, 1, 512, 2, 4, 2, 256, 4)


@dataclass(frozen=True, eq=False)
class Voice:
    """A packaged corpus, and the stages of what is made of it."""

    name: str
    base: BaseModel
    plan: Plan
    stages: Stages

    @cached_property
    def train(self) -> tuple[Piece, ...]:
        return tuple(read_pieces([DATA / self.name / "train"]).pieces)

    @cached_property
    def heldout(self) -> tuple[Piece, ...]:
        return tuple(read_pieces([DATA / self.name / "heldout"]).pieces)

    def prepared(self, kind: Kind, *, started: str | None = None, **settings: Any) -> PreparedRun:
        plan, folder = self.plan, DATA / self.name
        config = TrainConfig(
            kind=kind, steps=plan.steps, batch=plan.rows, validation_tokens=512, sample_every=10_000_000, measure="none",
            **settings,
        )  # fmt: skip
        paths = TextPaths((folder / "train",), (folder / "heldout",))
        return prepare(self.base, config, paths, started=started)

    def windows(self, pieces: Sequence[Piece], tokens: int) -> list[Example]:
        return windows_of(self.base, pieces, row_tokens=ROW_TOKENS, limit=tokens, first=bool(self.base.bos_ids))

    def plain(self) -> list[Writer]:
        """The writers that run on the base model as it is, and so in one batch."""
        base, description = self.base, DESCRIPTIONS[self.name]
        step = max(1, len(self.train) // EXAMPLES)
        shown = [
            base.encode(piece.text)[:EXAMPLE_TOKENS] + base.encode(BREAK) for piece in self.train[::step][:EXAMPLES]
        ]
        ahead = tuple(token for ids in shown for token in ids)
        return [
            Writer(NOTHING, base),
            Writer("system prompt", base, system=description, cost=Cost(bytes=len(description.encode()))),
            Writer("five examples", base, ahead=ahead, cost=Cost(bytes=len(base.decode(ahead).encode()))),
            *self._soft_prompts("embedding"),
            *self._soft_prompts("kv"),
        ]

    def _soft_prompts(self, kind: Kind) -> list[Writer]:
        file = self.stages.folder / ("kv.kv.zip" if kind == "kv" else "embedding.zip")
        cost = self.stages.cost(kind, file, lambda: trained(self.prepared(kind))[0].save(file))
        name, prompt = {"kv": "KV", "embedding": "embedding"}[kind], read_single(file)
        return [
            Writer(f"{name}, not held", self.base, with_attention(prompt, "off", None), cost=cost),
            Writer(f"{name}, held", self.base, prompt, cost=cost),
        ]

    def lora(self) -> Writer:
        folder = self.stages.folder / "lora"
        cost = self.stages.cost(
            "lora", folder, lambda: train_lora(self.base, self.prepared("embedding", started="nothing"), folder)
        )
        return Writer("LoRA r8", with_lora(self.base, folder), cost=cost, mixes="one")

    def control_vector(self) -> Writer:
        file = self.stages.folder / "control.npz"

        def make() -> None:
            directions = control_vector(self.base, self._excerpts(self.train), self._excerpts(training_texts()))
            windows = self.windows(self.train, 512)
            losses = {
                strength: mean_nll(Writer("", with_control(self.base, directions, strength)), windows)
                for strength in STRENGTHS
            }
            print(f"control vector of {self.name}, loss by strength: {losses}", flush=True)
            # The best loss is that of the weakest, which does nothing to be seen.
            strongest = max(strength for strength, loss in losses.items() if loss <= min(losses.values()) + MOST_LOST)
            np.savez(file, **{str(layer): strongest * direction for layer, direction in directions.items()})

        cost = self.stages.cost("control", file, make)
        with np.load(file) as stored:
            directions: Directions = {int(layer): stored[layer] for layer in stored}
        return Writer("control vector", with_control(self.base, directions, 1.0), cost=cost, mixes="one")

    def _excerpts(self, pieces: Sequence[Piece]) -> list[list[int]]:
        random = np.random.default_rng(0)
        return [consecutive_ids(self.base, pieces, PAIR_TOKENS, random) for _ in range(self.plan.pairs)]


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--folder", type=Path, default=Path("runs/holding"), help="where stages are stored")
    parser.add_argument("--voices", nargs="*", default=list(DESCRIPTIONS), choices=list(DESCRIPTIONS))
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    options = parser.parse_args()
    if missing := [name for name in ("peft", "sklearn") if find_spec(name) is None]:
        raise SystemExit(f"needs {' and '.join(missing)}: pip install 'sordino[bench]'")
    if options.threads:
        torch.set_num_threads(options.threads)
    base = load(options.model, dtype=options.dtype, device=options.device)
    plan, stages = (QUICK if options.quick else Plan()), Stages(options.folder / ("quick" if options.quick else "full"))
    if stages.of("plan", lambda: asdict(plan)) != asdict(plan):
        raise SystemExit(f"{stages.folder} holds the stages of another plan: choose another --folder")
    rows: list[dict[str, Any]] = []
    for name in options.voices:
        voice = Voice(name, base, plan, Stages(stages.folder / name))
        done = rows
        for found in rows_of(voice, stages):
            rows = [*done, *found]
            if not options.quick:
                save("holding", base.device, rows)
    if options.quick:
        print(json.dumps(rows, indent=1))


def rows_of(voice: Voice, shared: Stages) -> Iterator[list[dict[str, Any]]]:
    """The judge's row and one for each writer, with those of each batch of writers."""
    plan, alone, asked = voice.plan, Writer(NOTHING, voice.base), read_instructions()[: voice.plan.instructions]
    openings = (*plan.openings, *packaged_openings("texts")[-plan.others :])
    (written,) = shared.of("stories of nothing", lambda: write_stories([alone], openings, plan.length)).values()
    stories, others = {NOTHING: written[: plan.stories]}, written[plan.stories :]
    said = {NOTHING: shared.of("answers of nothing", lambda: answers(alone, asked))}
    judge = judge_of(voice, *([voice.base.decode(ids) for ids in texts] for texts in (others, stories[NOTHING])))
    rows = [
        {"voice": voice.name, "AUC of the judge": round(judge.auc, 3), "chunks": " and ".join(map(str, judge.chunks))}
    ]
    for batch in (voice.plain, lambda: [voice.control_vector()], lambda: [voice.lora()]):
        writers = batch()
        to_write = [writer for writer in writers if writer.name not in stories]
        name = "stories" if len(writers) > 1 else f"stories of {writers[0].name}"
        stories |= voice.stages.of(name, partial(write_stories, to_write, plan.openings, plan.length))
        for writer in writers:
            losses = losses_of(voice, writer, stories[writer.name])
            # Within its first 128 tokens a held prompt is as one that is not: the answers are those of both.
            kind = writer.name.partition(",")[0]
            if kind not in said:
                said[kind] = voice.stages.of(f"answers of {kind}", partial(answers, writer, asked))
            followed = [one.followed(answer) for one, answer in zip(asked, said[kind], strict=True)]
            rows.append(
                {
                    "voice": voice.name,
                    "writer": writer.name,
                    **styles(judge, [parts(voice.base, ids) for ids in stories[writer.name]]),
                    "NLL": round(losses[0], 3),
                    "NLL at the end": round(losses[-2], 3),
                    "followed": sum(followed),
                    "asked": len(asked),
                    "damage": round(losses[-1] - rows[1]["losses"][-1] if len(rows) > 1 else 0.0, 3),
                    "positions": writer.positions,
                    **asdict(writer.cost),
                    "a batch mixes": writer.mixes,
                    "losses": losses,
                }
            )
        yield list(rows)


def losses_of(voice: Voice, writer: Writer, stories: Sequence[Sequence[int]]) -> list[float]:
    """On held-out texts after each distance, and last on a text in another voice."""
    plan = voice.plan
    windows = voice.windows(voice.heldout, ROW_TOKENS * plan.windows)
    found = packaged_text([], voice.heldout)
    assert found is not None
    elsewhere = voice.windows(found[1], plan.off_domain)
    losses: list[float] = voice.stages.of(
        f"losses of {writer.name}",
        lambda: [
            *nll_behind_stories(writer, windows, plan.openings, stories, plan.distances),
            mean_nll(writer, elsewhere),
        ],
    )
    return losses


def judge_of(voice: Voice, others: Sequence[str], stories: Sequence[str]) -> Judge:
    """Trained on other texts of the base model, and tried on its stories, whose style is 0 in the mean."""
    train, heldout = ([piece.text for piece in pieces] for pieces in (voice.train, voice.heldout))
    return train_judge(train, others, heldout_voice=heldout, heldout_base=stories)


def parts(base: BaseModel, ids: Sequence[int]) -> list[str]:
    return [base.decode(ids[at : at + WINDOW]) for at in range(0, len(ids), WINDOW)]


if __name__ == "__main__":
    main()
