"""What writes in a voice, its stories and answers, and the model's loss after them.

Shape key: W windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.instructions import Instruction
from benchmarks.stages import Cost
from sordino.engine.generate import TextRequest, complete, draw
from sordino.engine.sampling import Sampling
from sordino.evaluation.conditions import Condition, no_prompt, soft_prompt
from sordino.evaluation.distance import run_text
from sordino.evaluation.scoring import nll_of_windows
from sordino.forward.packing import with_leading_ids
from sordino.models.base_model import BaseModel
from sordino.models.chat_template import chat_ids
from sordino.prompts.prompt import Prompt
from sordino.texts.examples import Example
from sordino.texts.neutral import BREAK

REQUEST = "Write a long story."
# As programs for writers set it: without, a small model soon repeats itself, whatever stands in front.
_WRITING = Sampling(repetition_penalty=1.1, repetition_range=256)
_ANSWER = Sampling(max_tokens=48, temperature=0.0)
_PASS_TOKENS = 1024
Tokens = Sequence[int]


@dataclass(frozen=True, eq=False)
class Writer:
    """A model made to write in a voice. system: a system message. ahead: ids in front of everything. mixes: how many different
    ones a batch may hold.
    """

    name: str
    base: BaseModel
    prompt: Prompt | None = None
    system: str = ""
    ahead: tuple[int, ...] = ()
    cost: Cost = field(default_factory=Cost)
    mixes: str = "any number"

    @property
    def front(self) -> tuple[int, ...]:
        """The ids in front of a story: with a system message, the chat in which a story is asked for."""
        return self._chat(REQUEST) if self.system else self.ahead

    def asked(self, instruction: str) -> tuple[int, ...]:
        return (*self.ahead, *self._chat(instruction))

    @property
    def positions(self) -> int:
        """In front of a story."""
        return len(self.front) + (0 if self.prompt is None else self.prompt.n_tokens)

    def condition(self) -> Condition:
        own = no_prompt(self.base) if self.prompt is None else soft_prompt(self.base, self.name, self.prompt)
        return own.behind(self.front) if self.front else own

    def _chat(self, request: str) -> tuple[int, ...]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return chat_ids(self.base, [*system, {"role": "user", "content": request}])


def write_stories(writers: Sequence[Writer], openings: Sequence[str], tokens: int) -> dict[str, list[list[int]]]:
    """By the writers' names, a story of `tokens` tokens after each opening, as ids without it. One batch: one base model."""
    base = writers[0].base
    requests = [
        TextRequest((*writer.front, *base.encode(opening)), writer.prompt, seed)
        for writer in writers
        for seed, opening in enumerate(openings)
    ]
    # A story does not end by itself.
    endless = tuple((token, -1e9) for token in sorted(base.stop_ids))
    drawn = draw(base, requests, replace(_WRITING, max_tokens=tokens, logit_bias=endless), rows=len(requests))
    ids = [[one.token for one in text.tokens] for text in drawn]
    return {writer.name: ids[at * len(openings) : (at + 1) * len(openings)] for at, writer in enumerate(writers)}


def answers(writer: Writer, instructions: Iterable[Instruction]) -> list[str]:
    requests = [TextRequest(writer.asked(one.ask), writer.prompt) for one in instructions]
    return complete(writer.base, requests, _ANSWER)


def nll_behind_stories(
    writer: Writer,
    windows: Sequence[Example],
    openings: Sequence[str],
    stories: Sequence[Tokens],
    distances: Sequence[int],
) -> list[float]:
    """Nats a token over the windows, after the first tokens of what the writer wrote: of each story its share of the windows.

    After 0 tokens stands what is in front of a story; further on, the opening and a line break too.
    """
    base, totals = writer.base, [0.0] * len(distances)
    behind = [with_leading_ids(window, base.encode(BREAK)) for window in windows]
    for number, (opening, story) in enumerate(zip(openings, stories, strict=True)):
        condition, text, at = writer.condition(), (*base.encode(opening), *story), 0
        for place, distance in enumerate(distances):
            end = distance and distance + len(text) - len(story)
            condition, at = run_text(base, condition, text[at:end]) if end else condition, end
            own = (behind if end else windows)[number :: len(stories)]
            totals[place] += nll_of_windows(base, [condition], own, pass_tokens=_PASS_TOKENS).sum()
    return [float(total) / _targets(windows) for total in totals]


def mean_nll(writer: Writer, windows: Sequence[Example]) -> float:
    """Nats a token right after what stands in front of a story."""
    nll_W = nll_of_windows(writer.base, [writer.condition()], windows, pass_tokens=_PASS_TOKENS)
    return float(nll_W.sum()) / _targets(windows)


def _targets(windows: Sequence[Example]) -> int:
    return sum(sum(window.labelled) for window in windows)
