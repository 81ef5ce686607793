"""Sordino trains, shares, serves and mixes soft prompts.

    import sordino

    model = sordino.load_model("smollm2")
    result = sordino.train(model, "texts/", tokens=20, steps=100, on_event=print)
    result.prompt.save("voice.zip")
    print(result.report)

    prompt = sordino.load("voice.zip")
    print(model.generate("It rained all day", prompt, max_tokens=60, seed=1))
    print(sordino.evaluate(model, prompt, heldout="heldout/"))

Names are loaded when they are first used: `import sordino` costs milliseconds, and only what computes loads PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "AttachedPrompt",
    "DistilConfig",
    "EvaluateConfig",
    "KVPrompt",
    "Metadata",
    "Mixture",
    "Model",
    "PromptAttention",
    "Report",
    "RunView",
    "Sample",
    "Sampling",
    "SoftPrompt",
    "SordinoError",
    "Step",
    "TrainConfig",
    "TrainResult",
    "Validation",
    "attach",
    "distil",
    "evaluate",
    "load",
    "load_model",
    "peek",
    "push",
    "resume",
    "suited_models",
    "train",
    "unfinished",
]

if TYPE_CHECKING:
    from sordino.api.evaluation import evaluate as evaluate
    from sordino.api.files import load as load
    from sordino.api.files import peek as peek
    from sordino.api.files import push as push
    from sordino.api.model import Model as Model
    from sordino.api.model import load_model as load_model
    from sordino.api.model import suited_models as suited_models
    from sordino.api.training import distil as distil
    from sordino.api.training import resume as resume
    from sordino.api.training import train as train
    from sordino.api.training import unfinished as unfinished
    from sordino.engine.attach import AttachedPrompt as AttachedPrompt
    from sordino.engine.attach import attach as attach
    from sordino.engine.config import Sampling as Sampling
    from sordino.errors import SordinoError as SordinoError
    from sordino.evaluation.config import EvaluateConfig as EvaluateConfig
    from sordino.evaluation.report import Report as Report
    from sordino.prompts.attention import PromptAttention as PromptAttention
    from sordino.prompts.kv_prompt import KVPrompt as KVPrompt
    from sordino.prompts.mixture import Mixture as Mixture
    from sordino.prompts.soft_prompt import Metadata as Metadata
    from sordino.prompts.soft_prompt import SoftPrompt as SoftPrompt
    from sordino.training.config import TrainConfig as TrainConfig
    from sordino.training.distil.config import DistilConfig as DistilConfig
    from sordino.training.events import Sample as Sample
    from sordino.training.events import Step as Step
    from sordino.training.events import Validation as Validation
    from sordino.training.result import TrainResult as TrainResult
    from sordino.training.run_view import RunView as RunView
else:
    _MODULES = {
        "AttachedPrompt": "engine.attach",
        "DistilConfig": "training.distil.config",
        "EvaluateConfig": "evaluation.config",
        "KVPrompt": "prompts.kv_prompt",
        "Metadata": "prompts.soft_prompt",
        "Mixture": "prompts.mixture",
        "Model": "api.model",
        "PromptAttention": "prompts.attention",
        "Report": "evaluation.report",
        "RunView": "training.run_view",
        "Sample": "training.events",
        "Sampling": "engine.config",
        "SoftPrompt": "prompts.soft_prompt",
        "SordinoError": "errors",
        "Step": "training.events",
        "TrainConfig": "training.config",
        "TrainResult": "training.result",
        "Validation": "training.events",
        "attach": "engine.attach",
        "distil": "api.training",
        "evaluate": "api.evaluation",
        "load": "api.files",
        "load_model": "api.model",
        "peek": "api.files",
        "push": "api.files",
        "resume": "api.training",
        "suited_models": "api.model",
        "train": "api.training",
        "unfinished": "api.training",
    }

    # For everything else, the rooms themselves among it, Python goes on to look for a module.
    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'sordino' has no attribute {name!r}")
        value = getattr(import_module(f"sordino.{_MODULES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
