"""A real server on a real port, over a tiny model and a library of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from sordino import formats
from sordino.engine.backend import Backend
from sordino.engine.config import EngineOptions
from sordino.engine.runners.build import embedded, torch_runner
from sordino.library.library import Library
from sordino.models.base_model import BaseModel
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.server.app import create_app
from sordino.server.connections import http_protocol
from sordino.server.metrics import ServerMetrics
from sordino.server.page.app import Page
from sordino.server.prompts import ServedPrompts
from sordino.server.serving import Idle, ServerLimits, Serving
from sordino.server.start import Models, opened
from tests.tiny_models import tiny_base

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
    **app: Any,
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
        if with_page:
            page = stack.enter_context(closing(Page(models, nothing, "torch", app.get("api_key"), folder / "data")))
            page.start()
            app["page"] = page.add
        state = nothing if idle else serving
        config = uvicorn.Config(
            create_app(state, models=models, **app),
            http=http_protocol(limits or ServerLimits()),  # type: ignore[arg-type]
            port=0,
            log_level="warning",
            lifespan="off",
            ws="websockets-sansio" if with_page else "none",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Running(f"http://127.0.0.1:{port}", serving, folder / "library", server)
        finally:
            server.should_exit = True
            thread.join(20)
