"""What is served, for all routes."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from sordino.engine.backend import Backend
from sordino.engine.grammar import Grammars
from sordino.models.description import DescribedModel
from sordino.server.errors import Refused
from sordino.server.metrics import ServerMetrics
from sordino.server.prompts import ServedPrompts


@dataclass(frozen=True)
class ServerLimits:
    """max_tokens: most new tokens of a request. n: most continuations of a request. body, upload: bytes.
    seconds: a request's time to wait and run. header_seconds, body_seconds: the time for its headers, and its body, to arrive.
    read_seconds: how long an answer may wait until its client reads. connections: most of one address.
    wrong_key_seconds: the longest time before a wrong key is answered.
    """

    max_tokens: int = 2048
    n: int = 16
    body: int = 4 << 20
    upload: int = 64 << 20
    seconds: float = 1800.0
    header_seconds: float = 20.0
    body_seconds: float = 60.0
    read_seconds: float = 60.0
    connections: int = 512
    wrong_key_seconds: float = 10.0


@dataclass(frozen=True)
class Serving:
    """One base model, its backend, the library and the metrics. started: seconds since the epoch.

    model: what clients call the base model: a bundled name or a public id, never a path.
    """

    model: str
    base: DescribedModel
    backend: Backend
    prompts: ServedPrompts
    metrics: ServerMetrics
    limits: ServerLimits
    started: int
    grammars: Grammars

    @property
    def runner(self) -> str:
        """The backend's name, for people."""
        return self.backend.name

    @property
    def context_length(self) -> int:
        """Positions of a row."""
        return self.backend.context_length


@dataclass(frozen=True)
class Idle:
    """The state while no model is loaded."""

    prompts: ServedPrompts
    metrics: ServerMetrics
    limits: ServerLimits


def state_of(request: HTTPConnection) -> Serving | Idle:
    """What is served now, for routes that need no model."""
    state: Serving | Idle = request.app.state.serving
    return state


def serving_of(request: HTTPConnection) -> Serving:
    """What is served now: after PUT /model it is another. Raises Refused (503) where no model is loaded."""
    state = state_of(request)
    if isinstance(state, Idle):
        raise Refused(503, "no model is loaded: choose one on this server's page, or start it with --model")
    return state
