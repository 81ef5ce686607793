"""The teacher: the base model with the long text in front. It writes the continuations that a student learns.

They are drawn at temperature 1 from the model's whole distribution, and the engine reports the likeliest word of each step. What
the student predicts is in `targets`.

Shape key: P positions of the text, D model width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sordino.engine.generate import DrawnText, TextRequest, draw
from sordino.engine.sampling import Drawn, Sampling
from sordino.errors import DataError
from sordino.models.base_model import BaseModel
from sordino.prompts.prompt import Vectors
from sordino.prompts.soft_prompt import BaseRef, Metadata, check_width
from sordino.settings import LARGEST_SEED
from sordino.storage import write_bytes
from sordino.texts.example_store import Example, SoftTargets
from sordino.training.distil.config import DistilConfig
from sordino.training.distil.openings import Opening, Openings
from sordino.training.initialise import embeds_of

FILE = "teacher.jsonl"
_VERSION = 1
# Positions of running rows, the long text counted in each: 750 MB for SmolLM2-135M.
_POSITIONS = 16_384
_MOST_ROWS = 32


@dataclass(frozen=True, eq=False)
class TextPrompt:
    """Words as a prompt: their own token embeddings, which run once for all rows after them, as a soft prompt does."""

    vectors_PD: Vectors
    metadata: Metadata
    kind: ClassVar[str] = "text"

    @staticmethod
    def of(base: BaseModel, ids: Sequence[int]) -> TextPrompt:
        return TextPrompt(embeds_of(base, ids).numpy(), Metadata(base=base.ref, placement=base.placement))

    @property
    def n_tokens(self) -> int:
        return len(self.vectors_PD)

    @property
    def d_model(self) -> int:
        return int(self.vectors_PD.shape[1])

    @cached_property
    def content_hash(self) -> str:
        head = f"text {self.n_tokens} {self.d_model}\n".encode()
        return hashlib.sha256(head + self.vectors_PD.astype("<f4", copy=False).tobytes()).hexdigest()

    def prefix(self, base: BaseRef) -> Vectors:
        check_width(self.d_model, base, where=self.kind)
        return self.vectors_PD


@dataclass(frozen=True)
class Continuation:
    """What the teacher wrote after an opening. drawn: its tokens. ended: an end-of-text token came next."""

    opening: Opening
    drawn: tuple[Drawn, ...]
    ended: bool

    def alone(self, end_id: int | None, soft: SoftTargets | None = None) -> Example:
        """For the student. end_id: the token of an end, None to leave it out. soft: the teacher's distributions."""
        return self._example(self.opening.alone, end_id, soft)

    def behind(self, end_id: int | None) -> Example:
        """For the teacher, after `Openings.prefix`."""
        return self._example(self.opening.behind, end_id, None)

    def _example(self, opening: Sequence[int], end_id: int | None, soft: SoftTargets | None) -> Example:
        written = (*(one.token for one in self.drawn), *([end_id] if self.ended and end_id is not None else []))
        labelled = (False,) * len(opening) + (True,) * len(written)
        return Example((*opening, *written), labelled, self.opening.text, soft)

    @property
    def nll(self) -> float:
        """The teacher's own, in nats."""
        return -sum(one.logprob or 0.0 for one in self.drawn)


def continuations(
    base: BaseModel,
    openings: Openings,
    config: DistilConfig,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Continuation]:
    """The continuations in the folder's file, if they are of this text, model and settings; else new ones, which go there.

    Raises ConfigError where text, opening and continuation do not fit the model's context, OutOfMemory, StorageError.
    """
    rows = _dealt(openings, config)
    key = _key(base, openings, config)
    found = _read(folder / FILE, key, rows)
    if found is not None:
        return found
    text = TextPrompt.of(base, openings.prefix)
    longest = len(openings.prefix) + max(len(one.behind) for one in rows) + config.length
    requests = [TextRequest(one.behind, text, (config.seed + at) % LARGEST_SEED) for at, one in enumerate(rows)]
    sampling = Sampling(max_tokens=config.length, temperature=1.0, top_p=1.0, logprobs=1)
    at_once = max(1, min(_MOST_ROWS, _POSITIONS // longest))
    written = draw(base, requests, sampling, rows=at_once, progress=progress)
    lines = [{"version": _VERSION, "key": key}, *map(_line, rows, written)]
    write_bytes(folder / FILE, "".join(json.dumps(line) + "\n" for line in lines).encode())
    # Rounded as the file has them, so that a resumed run has the same numbers.
    made = _read(folder / FILE, key, rows)
    assert made is not None
    return made


def _dealt(openings: Openings, config: DistilConfig) -> list[Opening]:
    """The opening of each continuation: those that are measured on once each, the others in turn."""
    measured, train = [*openings.of("heldout"), *openings.of("validation")], openings.of("train")
    count = max(len(train), config.continuations - len(measured))
    return [*measured, *(train[at % len(train)] for at in range(count))]


def _key(base: BaseModel, openings: Openings, config: DistilConfig) -> str:
    """SHA-256 of all that the continuations depend on."""
    known = (
        base.fingerprint, str(base.dtype), base.device.type, openings.prefix, [asdict(one) for one in openings.openings],
        config.continuations, config.length, config.seed,
    )  # fmt: skip
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _line(opening: Opening, written: DrawnText) -> Mapping[str, Any]:
    return {
        "opening": opening.text,
        "set": opening.part,
        "tokens": [one.token for one in written.tokens],
        "logprobs": [round(one.logprob or 0.0, 5) for one in written.tokens],
        "top": [[[token, round(logprob, 5)] for token, logprob in one.top] for one in written.tokens],
        "ended": written.ended,
    }


def _read(path: Path, key: str, rows: Sequence[Opening]) -> list[Continuation] | None:
    """None where there is no file, or it is of other settings. Raises DataError for a damaged one."""
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head)["key"] != key:
            return None
        return [_continuation(opening, json.loads(line)) for opening, line in zip(rows, lines, strict=True)]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the teacher's continuations cannot be read", where=path, got=error, do="delete the file: it is made again"
        ) from None


def _continuation(opening: Opening, line: Mapping[str, Any]) -> Continuation:
    drawn = tuple(
        Drawn(token, logprob, tuple((word, value) for word, value in top))
        for token, logprob, top in zip(line["tokens"], line["logprobs"], line["top"], strict=True)
    )
    return Continuation(opening, drawn, line["ended"])
