"""A real server on a real port, over a tiny model and a library of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from sordino import formats
from sordino.engine.backend import Backend
from sordino.engine.config import EngineOptions, Sampling
from sordino.engine.generate import TextRequest, complete
from sordino.engine.runners.build import embedded, torch_runner
from sordino.library.library import Library
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.server.addresses import Access
from sordino.server.app import create_app
from sordino.server.connections import http_protocol
from sordino.server.metrics import ServerMetrics
from sordino.server.page.app import Page
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import Idle, ServerLimits, Serving
from sordino.server.start import Models, opened
from tests.tiny_models import tiny_base
from tests.waiting import until

TEXT = "The keeper wrote"
# What its parser does not even read: bytes that are no UTF-8, a nest too deep, a number of thousands of digits.
NO_JSON = (b"\xff", b"[" * 100_000, b'{"prompt": "a", "max_length": ' + b"9" * 5_000 + b"}")


@dataclass
class Running:
    url: str
    serving: Serving
    folder: Path
    server: uvicorn.Server

    @property
    def base(self) -> BaseModel:
        assert isinstance(self.serving.base, BaseModel)
        return self.serving.base

    @property
    def left(self) -> float:
        """Texts that were not written to their end because whoever asked for them has left."""
        return left_at(self.url)


def left_at(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'reason="left"' in line and "_total{" in line)


def post(live: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{live.url}{path}", json=body, timeout=30)


def plainly(
    live: Running, name: str | None, text: str | tuple[int, ...] = TEXT, max_tokens: int = 12, **more: Any
) -> str:
    """What our own generation writes, greedy unless `more` of `Sampling` says otherwise. name: of a soft prompt in the library."""
    prompt = None if name is None else formats.read(live.folder / f"{name}.zip")
    how = Sampling(**{"max_tokens": max_tokens, "temperature": 0, **more})
    return complete(live.base, [TextRequest(text, prompt, 1)], how)[0]


def settle(live: Running) -> None:
    """Until no row runs and no request waits."""
    until(lambda: live.serving.backend.counts() == (0, 0), "rows are left")


def send_half(url: str, *headers: str) -> socket.socket:
    """A connection with a request whose body never comes."""
    host, port = url.removeprefix("http://").split(":")
    half = socket.create_connection((host, int(port)), timeout=10)
    head = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 50")
    half.sendall("\r\n".join([*head, *headers, "", "{"]).encode())
    return half


def voice(base: BaseModel, seed: int, *, tokens: int = 4, **metadata: Any) -> SoftPrompt:
    random = torch.Generator().manual_seed(seed)
    matrix = torch.randn(tokens, base.d_model, generator=random) * base.embedding_rms
    return SoftPrompt(matrix.numpy(), Metadata(**{"placement": base.placement, "base": base.ref, **metadata}))


def fill(folder: Path, base: BaseModel) -> None:
    """Two voices that fit, one of another width, one that is broken."""
    folder.mkdir(parents=True, exist_ok=True)
    formats.write(voice(base, 1, name="The keeper", author="A", tags=("log",)), folder / "keeper.zip", force=True)
    formats.write(voice(base, 2, name="The clerk"), folder / "clerk.zip", force=True)
    wide = SoftPrompt(torch.ones(3, base.d_model + 1).numpy(), Metadata(name="Wide"))
    formats.write(wide, folder / "wide.zip", force=True)
    (folder / "broken.zip").write_bytes(b"no zip")


@contextmanager
def running(
    folder: Path,
    base: BaseModel | None = None,
    *,
    limits: ServerLimits | None = None,
    rows: int = 4,
    queue: int = 50,
    kv_bytes: int = 1 << 26,
    others: Mapping[str, BaseModel] | None = None,
    with_page: bool = False,
    idle: bool = False,
    backend: Callable[[BaseModel], Backend] | None = None,
    **access: Any,
) -> Iterator[Running]:
    """with_page: the web page too, its files in `folder`/data. idle: no model is loaded, though `serving` is there.
    backend: runs the requests in place of the engine."""
    base = base or tiny_base("llama", dtype=torch.float32)
    fill(folder / "library", base)
    options = EngineOptions(rows=rows, queue=queue, kv_memory=kv_bytes / 2**20, prefix_memory=4)
    bases = {base.name: base, **(others or {})}
    library, metrics = Library([folder / "library"]), ServerMetrics()

    def serving_of(name: str) -> AbstractContextManager[Serving]:
        model = bases[name]
        return opened(
            model,
            backend(model) if backend else embedded(torch_runner(model, options), options),
            library,
            defaults=folder / "defaults.json",
            limits=limits,
            metrics=metrics,
        )

    with closing(Models(serving_of, others or {})) as models, ExitStack() as stack:
        serving = models.first(base.name)
        nothing = Idle(ServedPrompts(None, library), metrics, limits or ServerLimits())
        page = None
        if with_page:
            page = stack.enter_context(
                closing(Page(models, nothing, replace(options, runner="torch"), folder / "data"))
            )
            page.start()
        state = nothing if idle else serving
        config = uvicorn.Config(
            create_app(state, Access(**access), models=models, page=page.add if page else None),
            http=http_protocol(limits or ServerLimits()),  # type: ignore[arg-type]
            port=0,
            log_level="warning",
            lifespan="off",
            ws="websockets-sansio" if with_page else "none",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        until(lambda: server.started, "the server does not start")
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Running(f"http://127.0.0.1:{port}", serving, folder / "library", server)
        finally:
            server.should_exit = True
            thread.join(20)
