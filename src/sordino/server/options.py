"""What a server is started with, besides the model and where it listens. Imports neither FastAPI nor PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from sordino.settings import setting


@dataclass(frozen=True)
class PageOptions:
    """The page at /."""

    no_ui: bool = setting(False, "Do not serve the page at /; without --model, smollm2 is served.")
    opens: bool = setting(False, "Show the page in this machine's browser.", flag="--open")


@dataclass(frozen=True)
class ServedOptions:
    """What is served besides the model."""

    others: tuple[str, ...] = setting(
        (), "A model that PUT /api/v1/model may change to; may be repeated.", unit="NAME", flag="--other-model"
    )
    soft_prompt: str | None = setting(None, "The default soft prompt of KoboldAI's routes.", unit="NAME")
