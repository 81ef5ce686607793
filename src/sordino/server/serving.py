"""What all routes share."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import HTTPConnection

from sordino.engine.backend import Backend
from sordino.models.description import DescribedModel
from sordino.server.errors import Refused
from sordino.server.metrics import Metrics
from sordino.server.prompts import Voices


@dataclass(frozen=True)
class ServerLimits:
    """max_tokens: most new tokens a request may ask for. n: most continuations of one request. body and upload: bytes.
    seconds: how long a request may wait and run. body_seconds: how long its body may take to come.
    """

    max_tokens: int = 2048
    n: int = 16
    body: int = 4 << 20
    upload: int = 64 << 20
    seconds: float = 1800.0
    body_seconds: float = 60.0


@dataclass(frozen=True)
class Serving:
    """One base model, its backend, the library, and what is measured. started: seconds since the epoch.

    model: what clients call the base model: a bundled name or a public id, never a path.
    """

    model: str
    base: DescribedModel
    backend: Backend
    voices: Voices
    metrics: Metrics
    limits: ServerLimits
    started: int

    @property
    def runner(self) -> str:
        """Who computes."""
        return self.backend.name

    @property
    def context_length(self) -> int:
        """Positions of a row."""
        return self.backend.context_length


@dataclass(frozen=True)
class Idle:
    """What there is while no model is loaded."""

    voices: Voices
    metrics: Metrics
    limits: ServerLimits


def state_of(request: HTTPConnection) -> Serving | Idle:
    """What is served at this moment, for routes that need no model."""
    state: Serving | Idle = request.app.state.serving
    return state


def serving_of(request: HTTPConnection) -> Serving:
    """What is served at this moment: PUT /model may have another answer the next request. Raises Refused (503)."""
    state = state_of(request)
    if isinstance(state, Idle):
        raise Refused(503, "no model is loaded: choose one on this server's page, or start it with --model")
    return state
