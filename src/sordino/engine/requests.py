"""What goes into the engine and what comes out: a request, and the events of its life, of which exactly one is an `End`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sordino.engine.sampling import Drawn, Sampling
from sordino.errors import SordinoError
from sordino.prompts.mixture import Prompt

Reason = Literal["stop", "length", "aborted", "failed"]


@dataclass(frozen=True)
class Request:
    """Continue `ids` behind a soft prompt, a mixture of them, or behind none.

    ids: the row's own text; a BOS where its place is behind the prompt (`placement.leading_ids`). seed: of its random stream,
    on which nothing but the seed has influence. client: whose turn it is when many wait; "" is a client too.
    Of a mixture: skips, for each component, how many of the first `ids` it does without, as they stand in front of it (none
    given: each takes all); token_mixture, whether its weights stay as they are while it writes.
    """

    ids: tuple[int, ...]
    prompt: Prompt | None = None
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    client: str = ""
    skips: tuple[int, ...] = ()
    token_mixture: bool = False


@dataclass(frozen=True)
class Chunk:
    """New text, which may be empty while a character or a stop string is incomplete, and the tokens it was made of."""

    text: str
    drawn: tuple[Drawn, ...]


@dataclass(frozen=True)
class End:
    """The last event of a request. error: why it failed. n_prompt counts the soft prompt and BOS, n_new the drawn tokens."""

    reason: Reason
    n_prompt: int
    n_new: int
    error: SordinoError | None = None


Event = Chunk | End
