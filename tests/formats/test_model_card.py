"""The model card beside an exported adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from sordino import formats
from sordino.formats.model_card import card, is_edited
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

FULL = Metadata(
    name='The "keeper"',
    author="A: B",
    description="Logs of a light.",
    base=BaseRef("org/tiny"),
    licence="cc0-1.0",
    tags=("log", "yes"),
)


def head(content: bytes) -> dict[str, object]:
    _, yaml_head, _ = content.decode().split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(yaml_head)
    return found


def test_an_exported_folder_has_a_card_that_the_hub_reads(tmp_path: Path) -> None:
    formats.write(SoftPrompt(np.ones((3, 4), np.float32), FULL), tmp_path / "adapter", to="peft")
    content = (tmp_path / "adapter" / "README.md").read_bytes()
    assert head(content) == {
        "base_model": "org/tiny",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "cc0-1.0",
        "pipeline_tag": "text-generation",
        "tags": ["peft", "soft-prompt", "log", "yes"],
    }
    assert '# The "keeper"' in content.decode()
    assert "3 virtual tokens by A: B" in content.decode()


def test_a_card_that_somebody_edited_is_a_document() -> None:
    own = card(FULL, "KV prompt", 2)
    assert not is_edited(own)
    for edited in (b"Notes.", own.replace(b"light", b"lamp"), own + b"More.", b"", own.replace(b"<!--", b"")):
        assert is_edited(edited)


@pytest.mark.parametrize("metadata", [Metadata(), Metadata(name="x")])
def test_what_is_not_known_is_left_out(metadata: Metadata) -> None:
    assert set(head(card(metadata, "soft prompt", 2))) == {"library_name", "pipeline_tag", "tags"}
