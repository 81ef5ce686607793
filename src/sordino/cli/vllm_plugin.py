"""Soft prompts in a server that vLLM runs: `VLLM_PLUGINS=sordino vllm serve MODEL --enable-prompt-embeds`.

An entry point of `vllm.endpoint_plugins`. Requests that name a soft prompt (`base:name`, or the field `soft_prompt`), the library's
routes and KoboldAI's go to our application, over the same engine; all others stay vLLM's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sordino.errors import ConfigError
from sordino.library.library import open_library
from sordino.models import files
from sordino.server.addresses import Access

if TYPE_CHECKING:
    from argparse import Namespace

    from sordino.engine.vllm.backend import Client
    from sordino.models.description import DescribedModel
    from sordino.server.door import Ours

# Most requests that wait.
_QUEUE = 256


class SoftPrompts:
    """vLLM's EndpointPlugin (vllm/plugins/endpoint_plugins/interface.py)."""

    name = "sordino"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        from sordino.server.door import Ours

        self.ours: Ours = Ours()
        self._open = ExitStack()

    def attach_router(self, app: Any) -> None:
        """A layer around vLLM's routes, as most requests to a path that both have stay vLLM's."""
        from sordino.server.door import Door

        app.add_middleware(Door, ours=self.ours)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Raises ConfigError for flags with which there are no soft prompts, and as `describe_folder`."""
        from sordino.engine.vllm.backend import VllmBackend
        from sordino.server import openai
        from sordino.server.app import create_app
        from sordino.server.start import opened

        if not engine_client.model_config.enable_prompt_embeds:
            raise ConfigError(
                "vLLM was started without prompt embeddings", where="vllm serve", do="add --enable-prompt-embeds"
            )
        access = _access_of(args)
        model = await asyncio.to_thread(_described, args.model)
        backend = VllmBackend(model, _client(engine_client))
        serving = self._open.enter_context(opened(model, backend, open_library()))
        # What clients call the model is vLLM's choice.
        names = args.served_model_name or [args.model]
        serving = replace(serving, model=names[0])

        async def models(scope: MutableMapping[str, Any]) -> dict[str, Any]:
            """vLLM's, then the soft prompts."""
            found: dict[str, Any] = (await state.openai_serving_models.show_available_models()).model_dump()
            prompts = (await asyncio.to_thread(openai.model_list, serving))[1:]
            return {**found, "data": [*found["data"], *prompts]}

        self.ours.names = tuple(dict.fromkeys((*names, model.id)))
        self.ours.models = models
        self.ours.app = create_app(serving, access)


def _described(name: str) -> DescribedModel:
    from sordino.models.description import describe_folder

    model, _ = describe_folder(files.resolve(name))
    if model.encoder_decoder is not None:
        raise ConfigError("vLLM runs no encoder-decoders", where=name)
    return model


def _client(engine: Any) -> Client:
    from sordino.engine.vllm.backend import SAMPLER, Client

    rows = int(engine.vllm_config.scheduler_config.max_num_seqs)
    samples = SAMPLER in (engine.model_config.logits_processors or ())
    return Client(engine, asyncio.get_running_loop(), rows, _QUEUE, samples)


def _access_of(args: Namespace) -> Access:
    """The one key of vLLM's server guards our routes too. Raises ConfigError where other machines can reach them without."""
    keys = [key for key in (args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
    if len(keys) > 1:
        raise ConfigError(
            "soft prompts are guarded by one key", where="--api-key", got=f"{len(keys)} keys", do="give one"
        )
    return Access(
        # vLLM listens everywhere unless it is told otherwise. What has no flag there is a variable here.
        host=args.host or "0.0.0.0",
        api_key=keys[0] if keys else None,
        insecure=os.environ.get("SORDINO_INSECURE") == "1",
        allowed_hosts=tuple(filter(None, os.environ.get("SORDINO_ALLOWED_HOSTS", "").split(","))),
    )
