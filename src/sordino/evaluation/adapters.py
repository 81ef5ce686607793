"""LoRA adapters in PEFT's format, to compare soft prompts with. PEFT is in the extra `bench`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sordino.errors import BadInput, ConfigError
from sordino.models.base_model import BaseModel

# Pickled weights are not read.
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def check_adapter(folder: Path) -> None:
    """Raise BadInput for a folder that is not an adapter's, ConfigError where PEFT is not installed."""
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise BadInput(
            "not a folder of a LoRA adapter", where=folder, expected=" and ".join(_FILES), got=f"no {missing[0]}"
        )
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ConfigError("adapters need PEFT", where=folder, do="pip install sordino[bench]") from None


@contextmanager
def adapted(base: BaseModel, folder: Path) -> Iterator[None]:
    """The base model with an adapter in it; it is taken out again. Raises BadInput where it does not fit the model."""
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(base.network, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise BadInput(
            "the adapter does not fit the base model", where=folder, got=str(error).splitlines()[0][:120]
        ) from None
    try:
        yield
    finally:
        model.unload()
        base.network.requires_grad_(False)
